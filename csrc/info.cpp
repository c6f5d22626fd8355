// What this build contains and what this machine has of it, for `fused-bptt info` and the tests.
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "cpu/dispatch.h"

namespace fused_bptt {
namespace {

std::string names(const std::vector<const Kernels*>& kernels) {
  std::string text;
  for (const Kernels* k : kernels) text += (text.empty() ? "" : " ") + std::string(k->name);
  return text;
}

std::string compiled_isas() { return names(compiled_kernels()); }
std::string cpu_isas() { return names(supported_kernels()); }
std::string cpu_isa() { return active_kernels().name; }

// setup.py gives the list where it compiles for CUDA.
#ifndef FUSED_BPTT_CUDA_ARCHS
#define FUSED_BPTT_CUDA_ARCHS ""
#endif
std::string cuda_archs() { return FUSED_BPTT_CUDA_ARCHS; }

int64_t steps_of_chunk(int64_t B) { return chunk_steps(B); }

}  // namespace
}  // namespace fused_bptt

STABLE_TORCH_LIBRARY_IMPL(fused_bptt, CompositeExplicitAutograd, m) {
  m.impl("chunk_steps", TORCH_BOX(&fused_bptt::steps_of_chunk));
  m.impl("compiled_isas", TORCH_BOX(&fused_bptt::compiled_isas));
  m.impl("cpu_isas", TORCH_BOX(&fused_bptt::cpu_isas));
  m.impl("cpu_isa", TORCH_BOX(&fused_bptt::cpu_isa));
  m.impl("cuda_archs", TORCH_BOX(&fused_bptt::cuda_archs));
}
