// Included before every other file of a test program: a pause gives up the core, so that all
// threads come into a team even where there are fewer cores than threads.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#include <sched.h>
#undef _mm_pause
#define _mm_pause() sched_yield()
#endif
