// The 16-bit storage types, and their scalar conversions to and from the float they are computed
// in. Everything has internal linkage: each ISA's file compiles its own copy with its own
// instructions, and the linker must not share them.
#pragma once

#include <cstdint>
#include <cstring>

namespace fused_bptt {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class To, class From>
inline To bits_as(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof y);
  return y;
}

[[maybe_unused]] inline float bfloat16_to_float(uint16_t x) {
  return bits_as<float>(static_cast<uint32_t>(x) << 16);
}

// IEEE 754 binary16. A subnormal half is a small integer times 2^-24, which float holds exactly.
[[maybe_unused]] inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu;
  const uint32_t fraction = h & 0x3ffu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return bits_as<float>(bits_as<uint32_t>(magnitude) | sign);
  }
  const uint32_t biased = exponent == 31 ? 255 : exponent + 112;
  const uint32_t quiet = exponent == 31 && fraction != 0 ? 0x00400000u : 0;
  return bits_as<float>(sign | (biased << 23) | (fraction << 13) | quiet);
}

[[maybe_unused]] inline uint16_t float_to_half(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 2^16 or more: infinity
  if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 leaves the half's last place as the float's.
    const float shifted = bits_as<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(bits_as<uint32_t>(shifted) - 0x3f000000u);
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
}

}  // namespace
}  // namespace fused_bptt
