// The primitives with a leak in double, as problem.h has them, one row at a time.
#pragma once

#include <vector>

#include "equations.h"

namespace emulation {

template <class Storage>
void leaky_reference(const Problem& p, std::vector<double>& out, std::vector<double>& rates) {
  const bool voltage = p.primitive == Primitive::leaky_voltage;
  const bool linear = p.primitive == Primitive::outer || p.primitive == Primitive::inner;
  const bool of_sum = (p.primitive == Primitive::outer) != p.adjoint;  // what d multiplies
  const size_t H = static_cast<size_t>(p.H);
  for (int64_t g = 0; g < p.G; ++g) {
    for (int64_t b = 0; b < p.B; ++b) {
      std::vector<double> memory(H), operand(H);
      const auto begin = [&](const State& s) {
        for (size_t n = 0; n < H; ++n) {
          memory[n] = number<Storage>(s, b, g, static_cast<int64_t>(n));
          operand[n] = voltage ? activation(p.phi, memory[n]) : memory[n];
        }
      };
      const bool backwards = walks_backwards(p, g);
      bool begun = false;
      for (int64_t i = 0; i < p.T; ++i) {
        const int64_t t = backwards ? p.T - 1 - i : i;
        if (b >= rows_at(p, t)) continue;
        const int64_t boundary = t + (backwards ? 1 : 0);
        const bool ends = p.cuts.window > 0 && boundary > 0 && boundary % p.cuts.window == 0;
        if (!begun) begin(p.initial);
        if ((begun || !backwards) && cut_at(p, g, boundary, b)) {
          begin(p.cuts.replacement);
        } else if (begun && ends) {
          begin({});
        }
        std::vector<double> sum(H, 0.0);
        if (begun || !linear) sum = product<Storage>(p, g, operand);
        begun = true;
        for (size_t j = 0; j < H; ++j) {
          const int64_t n = static_cast<int64_t>(j);
          const double keep = number<Storage>(p, p.keep, t, b, g, n);
          const double drive = number<Storage>(p, p.drive, t, b, g, n);
          double x, rate = 0;
          if (linear) {
            const double d = number<Storage>(p, p.factor, t, b, g, n);
            x = drive + (p.adjoint ? memory[j] : keep * memory[j]) + (of_sum ? d * sum[j] : sum[j]);
            operand[j] = of_sum ? x : d * x;
          } else if (voltage) {
            x = keep * memory[j] + drive + sum[j];
            operand[j] = rate = activation(p.phi, x);
          } else {
            rate = activation(p.phi, drive + sum[j]);
            operand[j] = x = keep * memory[j] + number<Storage>(p, p.gain, t, b, g, n) * rate;
          }
          memory[j] = p.adjoint ? keep * x : x;
          const size_t at =
              static_cast<size_t>(origin(p, p.out, t) + b * p.out.row + g * p.out.group + n);
          out[at] = x;
          rates[at] = rate;
        }
      }
    }
  }
}

}  // namespace emulation
