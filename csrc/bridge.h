// From tensors to the plain struct that kernels receive: checks and allocation, no arithmetic.
// The only file that knows both.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "problem.h"

namespace fused_bptt {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A tensor in a message is its shape.
struct Words {
  std::ostringstream text;
  template <class T>
  Words& operator<<(const T& word) {
    text << word;
    return *this;
  }
  Words& operator<<(const Tensor& tensor) {
    text << "[";
    for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
    text << "]";
    return *this;
  }
};

// Throws what it is given, in a row, as a message; Torch's own macro would put this file's path
// before it.
template <class... T>
inline void check(bool holds, const T&... words) {
  if (holds) return;
  Words message;
  (message << ... << words);
  throw std::runtime_error(message.text.str());
}

// A problem together with the tensors and tables that its pointers lead into.
struct Bridged {
  Problem problem;
  std::optional<Tensor> out;  // none where the drive is overwritten
  std::optional<Tensor> last;
  std::optional<Tensor> rate;
  bool packed;
  std::vector<Tensor> kept;
  std::vector<int64_t> first_rows;
};

// The numbers live elsewhere: in the call, in a vector, in a tensor. A short call would notice what
// memory of their own costs.
struct Shape {
  Shape(std::initializer_list<int64_t> list) : data(list.begin()), count(list.size()) {}
  Shape(const std::vector<int64_t>& vector) : data(vector.data()), count(vector.size()) {}
  explicit Shape(const Tensor& tensor)
      : data(tensor.sizes().data()), count(tensor.sizes().size()) {}
  const int64_t* begin() const { return data; }
  const int64_t* end() const { return data + count; }
  const int64_t* data;
  size_t count;
};

inline void check_shape(const char* name, const Tensor& tensor, Shape expected,
                        const char* letters) {
  bool same = tensor.dim() == static_cast<int64_t>(expected.count);
  for (size_t i = 0; same && i < expected.count; ++i) {
    same = tensor.size(static_cast<int64_t>(i)) == expected.data[i];
  }
  if (same) return;
  std::string text;
  for (const int64_t size : expected) text += (text.empty() ? "" : ", ") + std::to_string(size);
  check(false, name, ": expected shape ", letters, " = [", text, "], got ", tensor);
}

inline void check_like(const char* name, const Tensor& tensor, const char* model_name,
                       const Tensor& model) {
  check(tensor.scalar_type() == model.scalar_type(), name, ": expected dtype ",
        toString(model.scalar_type()), " (that of ", model_name, "), got ",
        toString(tensor.scalar_type()));
  check(tensor.device() == model.device(), name, ": expected to be on the device of ", model_name,
        ", got another one");
}

inline Type type_of(const char* name, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Type::float32;
    case ScalarType::Double:
      return Type::float64;
    case ScalarType::BFloat16:
      return Type::bfloat16;
    case ScalarType::Half:
      return Type::float16;
    default:
      check(false, name, ": expected dtype float32, float64, bfloat16 or float16, got ",
            toString(tensor.scalar_type()));
      return Type::float32;
  }
}

inline Phi phi_of(const char* name, int64_t code, bool may_be_given) {
  check(code >= (may_be_given ? 0 : 1) && code <= 5, name, ": expected ",
        may_be_given ? "0 (given), " : "",
        "1 (tanh), 2 (relu), 3 (sigmoid), 4 (softplus) or 5 (identity), got ", code);
  return static_cast<Phi>(code);
}

inline Clip clip_of(int64_t code, double limit) {
  check(code >= 0 && code <= 2, "clip: expected 0 (none), 1 (value) or 2 (norm), got ", code);
  check(code == 0 || (limit > 0 && std::isfinite(limit)),
        "clip_limit: expected a finite number above 0, got ", limit);
  return {static_cast<Clip::Kind>(code), limit};
}

// The strides of a [T, B, G, H] or, packed, [N, G, H] tensor; without G if it is not grouped.
inline Sequence sequence_of(const Tensor& tensor, bool packed, bool grouped) {
  Sequence s{};
  s.data = const_cast<void*>(tensor.const_data_ptr());  // written only where the caller says so
  const int64_t base = packed ? 0 : 1;
  s.step = packed ? 0 : tensor.stride(0);
  s.row = tensor.stride(base);
  s.group = grouped ? tensor.stride(base + 1) : 0;
  return s;
}

inline State state_of(const Tensor& tensor) {
  return {const_cast<void*>(tensor.const_data_ptr()), tensor.stride(0), tensor.stride(1)};
}

// The last dimension must be contiguous in memory; a tensor that is not so is copied.
inline const Tensor& with_unit_stride(Bridged& bridged, const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  const bool copy = tensor.stride(last) != 1 && tensor.size(last) > 1;
  bridged.kept.push_back(copy ? torch::stable::contiguous(tensor) : tensor);
  return bridged.kept.back();
}

inline int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

// A new contiguous tensor, of at most four dimensions, with the model's device.
inline Tensor empty(Shape sizes, const Tensor& model, int32_t dtype) {
  std::array<int64_t, 4> strides;
  check(sizes.count <= strides.size(), "expected at most ", strides.size(), " dimensions, got ",
        sizes.count);
  int64_t stride = 1;
  for (size_t i = sizes.count; i-- > 0;) {
    strides[i] = stride;
    stride *= sizes.data[i] > 0 ? sizes.data[i] : 1;
  }
  int32_t device_type = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(model.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.count), sizes.data, strides.data(), dtype,
                               device_type, model.get_device_index(), &handle));
  return Tensor(handle);
}

// And with its dtype.
inline Tensor empty(Shape sizes, const Tensor& model) {
  return empty(sizes, model, dtype_of(model));
}

// T, B and the rows of each step, of a sequence [T, B, ...] or, packed, [N, ...].
inline void read_steps(Bridged& bridged, const Tensor& model,
                       const std::optional<Tensor>& batch_sizes) {
  Problem& p = bridged.problem;
  bridged.packed = batch_sizes.has_value();
  if (!batch_sizes) {
    p.T = model.size(0);
    p.B = model.size(1);
    return;
  }
  const Tensor& sizes = *batch_sizes;
  check(sizes.is_cpu() && sizes.dim() == 1 && sizes.scalar_type() == ScalarType::Long,
        "batch_sizes: expected an int64 vector [T] on the CPU, got shape ", sizes, " and dtype ",
        toString(sizes.scalar_type()));
  bridged.kept.push_back(torch::stable::contiguous(sizes));
  const int64_t* values = static_cast<const int64_t*>(bridged.kept.back().const_data_ptr());
  p.T = sizes.size(0);
  p.B = p.T > 0 ? values[0] : 0;
  int64_t rows = 0;
  for (int64_t t = 0; t < p.T; ++t) {
    check(values[t] >= 0 && (t == 0 || values[t] <= values[t - 1]),
          "batch_sizes: expected numbers >= 0 that never increase, got ", values[t], " at step ",
          t);
    bridged.first_rows.push_back(rows);
    check(values[t] <= model.size(0) - rows, "batch_sizes: expected a sum of N = ", model.size(0),
          ", got more by step ", t);
    rows += values[t];
  }
  check(rows == model.size(0), "batch_sizes: expected a sum of N = ", model.size(0), ", got ",
        rows);
  p.batch_sizes = values;
  p.first_rows = bridged.first_rows.data();
}

// Where the walks of `problem` are cut. `model` has the sequences' device and dtype.
inline void bridge_cuts(Bridged& bridged, const char* model_name, const Tensor& model,
                        const std::optional<Tensor>& reset,
                        const std::optional<Tensor>& reset_state, int64_t window) {
  Problem& p = bridged.problem;
  check(window >= 0, "window: expected 0 (none) or more, got ", window);
  p.cuts.window = window;
  check(reset || !reset_state, "reset_state: expected with reset, got it alone");
  if (!reset) return;
  const bool packed = bridged.packed;
  check(reset->scalar_type() == ScalarType::Bool, "reset: expected dtype Bool, got ",
        toString(reset->scalar_type()));
  check(reset->device() == model.device(), "reset: expected to be on the device of ", model_name,
        ", got another one");
  std::vector<int64_t> shape =
      packed ? std::vector<int64_t>{model.size(0)} : std::vector<int64_t>{p.T, p.B};
  const bool grouped = reset->dim() == static_cast<int64_t>(shape.size()) + 1;
  if (grouped) shape.push_back(p.G);
  check_shape("reset", *reset, shape,
              packed ? (grouped ? "[N, G]" : "[N]") : (grouped ? "[T, B, G]" : "[T, B]"));
  const Sequence mask = sequence_of(*reset, packed, grouped);
  p.cuts.mask = static_cast<const bool*>(mask.data);
  p.cuts.step = mask.step;
  p.cuts.row = mask.row;
  p.cuts.group = mask.group;
  if (!reset_state) return;
  check_shape("reset_state", *reset_state, {p.G, p.B, p.H}, "[G, B, H]");
  check_like("reset_state", *reset_state, model_name, model);
  p.cuts.replacement = state_of(with_unit_stride(bridged, *reset_state));
}

// Checks everything before anything is allocated or touched. `drive` is u or v; `factor` is null
// for the recurrence, and then there is a drive; `initial` is h_0 or s_0.
inline Bridged bridge(Primitive primitive, const char* drive_name, const Tensor* drive,
                      const Tensor* factor, const Tensor& weight, const char* initial_name,
                      const Tensor* initial, const std::optional<Tensor>& batch_sizes,
                      int64_t reverse_groups, const char* phi_name, int64_t phi, bool adjoint,
                      const std::optional<Tensor>& reset, const std::optional<Tensor>& reset_state,
                      int64_t window) {
  Bridged bridged{};
  Problem& p = bridged.problem;
  const bool packed = batch_sizes.has_value();

  // The sequence that is always there says the shape and dtype.
  const Tensor& model = factor ? *factor : *drive;
  const char* model_name = factor ? "factor" : drive_name;
  check(weight.dim() == 2 || weight.dim() == 3,
        "weight: expected shape [G, H, H], or [H, H] for one group, got ", weight);
  const bool grouped = weight.dim() == 3;
  const char* letters =
      packed ? (grouped ? "[N, G, H]" : "[N, H]") : (grouped ? "[T, B, G, H]" : "[T, B, H]");
  check(model.dim() == (packed ? 2 : 3) + (grouped ? 1 : 0), model_name, ": expected shape ",
        letters, packed ? " with" : " without", " batch_sizes and with weight ", weight, ", got ",
        model);
  p.primitive = primitive;
  p.adjoint = adjoint;
  p.type = type_of(model_name, model);
  p.G = grouped ? model.size(packed ? 1 : 2) : 1;
  p.H = model.size(model.dim() - 1);

  p.phi = phi_of(phi_name, phi, primitive == Primitive::linear);
  check(reverse_groups >= 0 && reverse_groups <= p.G, "reverse_groups: expected 0 to G = ", p.G,
        ", got ", reverse_groups);
  p.reverse_groups = reverse_groups;

  read_steps(bridged, model, batch_sizes);

  if (grouped) check_shape("weight", weight, {p.G, p.H, p.H}, "[G, H, H]");
  if (!grouped) check_shape("weight", weight, {p.H, p.H}, "[H, H]");
  check_like("weight", weight, model_name, model);
  const Shape shape(model);
  if (factor && drive) {
    check_shape(drive_name, *drive, shape, letters);
    check_like(drive_name, *drive, model_name, model);
  }
  if (initial) {
    // A packed sequence of no steps does not say how many rows it has.
    if (packed && p.T == 0) p.B = initial->dim() == 3 ? initial->size(1) : 0;
    check_shape(initial_name, *initial, {p.G, p.B, p.H}, "[G, B, H]");
    check_like(initial_name, *initial, model_name, model);
  }
  check(!adjoint || !reset_state, "reset_state: expected none in an adjoint, got one");
  bridge_cuts(bridged, model_name, model, reset, reset_state, window);

  // The recurrence overwrites u with h: nothing needs u any more, and the memory is the largest
  // that a layer takes.
  const bool in_place = primitive == Primitive::recurrence;
  for (int64_t i = 0; in_place && i < model.dim(); ++i) {
    const bool last = i + 1 == model.dim();
    check(model.size(i) < 2 || (last ? model.stride(i) == 1 : model.stride(i) != 0), drive_name,
          ": expected memory of its own for each number, and the last dimension contiguous; got "
          "stride ",
          model.stride(i), " in dimension ", i);
  }
  if (in_place) {
    p.drive = sequence_of(*drive, packed, grouped);
    p.drive.data = drive->mutable_data_ptr();  // before it is written, a lazy copy becomes real
  }
  if (drive && !in_place) p.drive = sequence_of(with_unit_stride(bridged, *drive), packed, grouped);
  if (factor) p.factor = sequence_of(with_unit_stride(bridged, *factor), packed, grouped);
  p.weight = {weight.const_data_ptr(), grouped ? weight.stride(0) : 0,
              weight.stride(weight.dim() - 2), weight.stride(weight.dim() - 1)};
  if (initial) p.initial = state_of(with_unit_stride(bridged, *initial));
  if (in_place) {
    p.out = p.drive;
  } else {
    bridged.out = empty(shape, model);
    p.out = sequence_of(*bridged.out, packed, grouped);
  }
  bridged.last = empty({p.G, p.B, p.H}, model);
  p.last = state_of(*bridged.last);
  return bridged;
}

inline Bridged bridge_recurrence(const Tensor& u, const Tensor& weight, const Tensor& h0,
                                 const std::optional<Tensor>& batch_sizes, int64_t reverse_groups,
                                 int64_t nonlinearity, const std::optional<Tensor>& reset,
                                 const std::optional<Tensor>& reset_state) {
  return bridge(Primitive::recurrence, "u", &u, nullptr, weight, "h0", &h0, batch_sizes,
                reverse_groups, "nonlinearity", nonlinearity, false, reset, reset_state, 0);
}

inline Bridged bridge_linear_recurrence(const Tensor& factor, const std::optional<Tensor>& v,
                                        const Tensor& weight, const std::optional<Tensor>& s0,
                                        const std::optional<Tensor>& batch_sizes,
                                        int64_t reverse_groups, int64_t derivative, bool adjoint,
                                        const std::optional<Tensor>& reset,
                                        const std::optional<Tensor>& reset_state, int64_t window,
                                        int64_t clip, double clip_limit) {
  check(adjoint || clip == 0, "clip: expected 0 (none) without adjoint, got ", clip);
  const Clip clipped = clip_of(clip, clip_limit);
  Bridged bridged = bridge(Primitive::linear, "v", v ? &*v : nullptr, &factor, weight, "s0",
                           s0 ? &*s0 : nullptr, batch_sizes, reverse_groups, "derivative",
                           derivative, adjoint, reset, reset_state, window);
  bridged.problem.clip = clipped;
  return bridged;
}

// One of the primitives with a leak. `drive` is u or w; `factor` is a or d, and null for
// leaky_voltage; `initial` is null for outer and inner.
inline Bridged bridge_leaky(Primitive primitive, const char* drive_name, const Tensor& drive,
                            const Tensor& keep, const char* factor_name, const Tensor* factor,
                            const Tensor& weight, const Tensor* initial,
                            const std::optional<Tensor>& batch_sizes, int64_t reverse_groups,
                            Phi phi, bool adjoint, const std::optional<Tensor>& reset,
                            const std::optional<Tensor>& reset_state, int64_t window) {
  Bridged bridged{};
  Problem& p = bridged.problem;
  const bool packed = batch_sizes.has_value();
  check(weight.dim() == 2 || weight.dim() == 3,
        "weight: expected shape [G, H, H], or [H, H] for one group, got ", weight);
  const bool grouped = weight.dim() == 3;
  const char* letters =
      packed ? (grouped ? "[N, G, H]" : "[N, H]") : (grouped ? "[T, B, G, H]" : "[T, B, H]");
  check(drive.dim() == (packed ? 2 : 3) + (grouped ? 1 : 0), drive_name, ": expected shape ",
        letters, packed ? " with" : " without", " batch_sizes and with weight ", weight, ", got ",
        drive);
  p.primitive = primitive;
  p.phi = phi;
  p.adjoint = adjoint;
  p.type = type_of(drive_name, drive);
  p.G = grouped ? drive.size(packed ? 1 : 2) : 1;
  p.H = drive.size(drive.dim() - 1);
  check(reverse_groups >= 0 && reverse_groups <= p.G, "reverse_groups: expected 0 to G = ", p.G,
        ", got ", reverse_groups);
  p.reverse_groups = reverse_groups;
  read_steps(bridged, drive, batch_sizes);
  if (packed && p.T == 0 && initial) p.B = initial->dim() == 3 ? initial->size(1) : 0;

  if (grouped) check_shape("weight", weight, {p.G, p.H, p.H}, "[G, H, H]");
  if (!grouped) check_shape("weight", weight, {p.H, p.H}, "[H, H]");
  check_like("weight", weight, drive_name, drive);
  const std::vector<int64_t> shape(drive.sizes().begin(), drive.sizes().end());
  const auto sequence = [&](const char* name, const Tensor& tensor) {
    check_shape(name, tensor, shape, letters);
    check_like(name, tensor, drive_name, drive);
    return sequence_of(with_unit_stride(bridged, tensor), packed, grouped);
  };
  bridged.kept.reserve(6);  // references into it stay good
  p.drive = sequence(drive_name, drive);
  p.keep = sequence("keep", keep);
  if (factor)
    (primitive == Primitive::leaky_rate ? p.gain : p.factor) = sequence(factor_name, *factor);
  if (initial) {
    check_shape("initial", *initial, {p.G, p.B, p.H}, "[G, B, H]");
    check_like("initial", *initial, drive_name, drive);
    p.initial = state_of(with_unit_stride(bridged, *initial));
  }
  bridge_cuts(bridged, drive_name, drive, reset, reset_state, window);
  p.weight = {weight.const_data_ptr(), grouped ? weight.stride(0) : 0,
              weight.stride(weight.dim() - 2), weight.stride(weight.dim() - 1)};
  bridged.out = empty(shape, drive);
  p.out = sequence_of(*bridged.out, packed, grouped);
  if (phi != Phi::given) {
    bridged.rate = empty(shape, drive);
    p.rate = sequence_of(*bridged.rate, packed, grouped);
  }
  return bridged;
}

inline Bridged bridge_leaky_recurrence(const Tensor& u, const Tensor& keep,
                                       const std::optional<Tensor>& gain, const Tensor& weight,
                                       const Tensor& initial,
                                       const std::optional<Tensor>& batch_sizes,
                                       int64_t reverse_groups, int64_t nonlinearity,
                                       const std::optional<Tensor>& reset,
                                       const std::optional<Tensor>& reset_state) {
  return bridge_leaky(gain ? Primitive::leaky_rate : Primitive::leaky_voltage, "u", u, keep, "gain",
                      gain ? &*gain : nullptr, weight, &initial, batch_sizes, reverse_groups,
                      phi_of("nonlinearity", nonlinearity, false), false, reset, reset_state, 0);
}

inline Bridged bridge_leaky_linear(const Tensor& w, const Tensor& keep, const Tensor& factor,
                                   const Tensor& weight, const std::optional<Tensor>& batch_sizes,
                                   int64_t reverse_groups, bool inner, bool adjoint,
                                   const std::optional<Tensor>& reset, int64_t window) {
  return bridge_leaky(inner ? Primitive::inner : Primitive::outer, "w", w, keep, "factor", &factor,
                      weight, nullptr, batch_sizes, reverse_groups, Phi::given, adjoint, reset,
                      std::nullopt, window);
}

// A layer with the tensors that its pointers lead into.
struct BridgedLayer : Bridged {
  Layer layer;
  std::optional<Tensor> x_bar, weight_ih_bar, weight_hh_bar, bias_bar;
  std::optional<Tensor> replaced;
  std::optional<Tensor> ends, keep_bar, gain_bar, noise_scale_bar;  // with a leak
};

// What a layer's forward and backward have in common. `out` and `g` of the walk are left to them.
inline BridgedLayer bridge_layer(const Tensor& x, const Tensor& weight_ih, const Tensor& weight_hh,
                                 const char* initial_name, const Tensor& h0,
                                 const std::optional<Tensor>& batch_sizes, int64_t reverse_groups,
                                 int64_t nonlinearity, const std::optional<Tensor>& reset,
                                 const std::optional<Tensor>& reset_state, int64_t window) {
  BridgedLayer bridged{};
  Problem& p = bridged.problem;
  Layer& layer = bridged.layer;
  const bool packed = batch_sizes.has_value();
  check(weight_hh.dim() == 2 || weight_hh.dim() == 3,
        "weight_hh: expected shape [G, H, H], or [H, H] for one group, got ", weight_hh);
  const bool grouped = weight_hh.dim() == 3;
  p.G = grouped ? weight_hh.size(0) : 1;
  p.H = weight_hh.size(weight_hh.dim() - 1);
  check(x.dim() == (packed ? 2 : 3), "x: expected shape ",
        packed ? "[N, I] with batch_sizes" : "[T, B, I] without batch_sizes", ", got ", x);
  p.type = type_of("x", x);
  check(p.type == Type::float32 || p.type == Type::float64,
        "x: expected dtype float32 or float64, got ", toString(x.scalar_type()));
  p.phi = phi_of("nonlinearity", nonlinearity, false);
  check(reverse_groups >= 0 && reverse_groups <= p.G, "reverse_groups: expected 0 to G = ", p.G,
        ", got ", reverse_groups);
  p.reverse_groups = reverse_groups;
  read_steps(bridged, x, batch_sizes);
  if (packed && p.T == 0) p.B = h0.dim() == 3 ? h0.size(1) : 0;
  layer.I = x.size(x.dim() - 1);
  layer.rows = packed ? x.size(0) : p.T * p.B;

  if (grouped) check_shape("weight_hh", weight_hh, {p.G, p.H, p.H}, "[G, H, H]");
  if (!grouped) check_shape("weight_hh", weight_hh, {p.H, p.H}, "[H, H]");
  check_shape("weight_ih", weight_ih, {p.G * p.H, layer.I}, "[G * H, I]");
  check_shape(initial_name, h0, {p.G, p.B, p.H}, "[G, B, H]");
  check_like("weight_hh", weight_hh, "x", x);
  check_like("weight_ih", weight_ih, "x", x);
  check_like(initial_name, h0, "x", x);

  bridged.kept.reserve(20);  // references into it stay good
  bridge_cuts(bridged, "x", x, reset, reset_state, window);
  p.weight = {weight_hh.const_data_ptr(), grouped ? weight_hh.stride(0) : 0,
              weight_hh.stride(weight_hh.dim() - 2), weight_hh.stride(weight_hh.dim() - 1)};
  layer.weight_ih = {weight_ih.const_data_ptr(), p.H * weight_ih.stride(0), weight_ih.stride(0),
                     weight_ih.stride(1)};
  bridged.kept.push_back(torch::stable::contiguous(x));
  layer.x = bridged.kept.back().const_data_ptr();
  p.initial = state_of(with_unit_stride(bridged, h0));
  bridged.last = empty({p.G, p.B, p.H}, x);
  p.last = state_of(*bridged.last);
  return bridged;
}

// [T, B, G * H], or [N, G * H], contiguous.
inline Sequence sequence_of_layer(const Problem& p, const Tensor& tensor) {
  const int64_t row = p.G * p.H;
  return {const_cast<void*>(tensor.const_data_ptr()), p.first_rows ? 0 : p.B * row, row, p.H};
}

inline std::vector<int64_t> shape_of_layer(const Problem& p, const Tensor& x) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = p.G * p.H;
  return shape;
}

inline BridgedLayer bridge_layer_forward(
    const Tensor& x, const Tensor& weight_ih, const Tensor& weight_hh,
    const std::optional<Tensor>& bias_ih, const std::optional<Tensor>& bias_hh, const Tensor& h0,
    const std::optional<Tensor>& batch_sizes, int64_t reverse_groups, int64_t nonlinearity,
    const std::optional<Tensor>& reset, const std::optional<Tensor>& reset_state) {
  BridgedLayer bridged = bridge_layer(x, weight_ih, weight_hh, "h0", h0, batch_sizes,
                                      reverse_groups, nonlinearity, reset, reset_state, 0);
  Problem& p = bridged.problem;
  check(bias_ih.has_value() == bias_hh.has_value(),
        "bias_ih, bias_hh: expected both or none, got one");
  const auto bias = [&](const char* name, const Tensor& tensor) {
    check_shape(name, tensor, {p.G * p.H}, "[G * H]");
    check_like(name, tensor, "x", x);
    return with_unit_stride(bridged, tensor).const_data_ptr();
  };
  if (bias_ih) bridged.layer.bias_ih = bias("bias_ih", *bias_ih);
  if (bias_hh) bridged.layer.bias_hh = bias("bias_hh", *bias_hh);
  p.primitive = Primitive::recurrence;
  bridged.out = empty(shape_of_layer(p, x), x);
  p.out = p.drive = sequence_of_layer(p, *bridged.out);
  bridged.layer.walk = p;
  return bridged;
}

inline BridgedLayer bridge_layer_backward(
    const std::optional<Tensor>& g, const std::optional<Tensor>& g_last, const Tensor& h,
    const Tensor& x, const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& h0,
    const std::optional<Tensor>& batch_sizes, int64_t reverse_groups, int64_t nonlinearity,
    bool need_x, bool need_weight_ih, bool need_weight_hh, bool need_bias,
    const std::optional<Tensor>& reset, const std::optional<Tensor>& reset_state, int64_t window,
    int64_t clip, double clip_limit, int64_t members, bool need_reset_state) {
  const Clip clipped = clip_of(clip, clip_limit);
  check(!need_reset_state || reset_state,
        "need_reset_state: expected false without reset_state, got true");
  BridgedLayer bridged = bridge_layer(x, weight_ih, weight_hh, "h0", h0, batch_sizes,
                                      reverse_groups, nonlinearity, reset, reset_state, window);
  Problem& p = bridged.problem;
  Layer& layer = bridged.layer;
  p.clip = clipped;
  layer.sent.initial = p.initial;
  layer.sent.replacement = p.cuts.replacement;
  p.initial = {};
  p.cuts.replacement = {};
  const std::vector<int64_t> shape = shape_of_layer(p, x);
  const char* letters = batch_sizes ? "[N, G * H]" : "[T, B, G * H]";
  check_shape("h", h, shape, letters);
  check_like("h", h, "x", x);
  bridged.kept.push_back(torch::stable::contiguous(h));
  p.primitive = Primitive::linear;
  p.adjoint = true;
  p.factor = layer.sent.sequence = sequence_of_layer(p, bridged.kept.back());
  if (g) {
    check_shape("g", *g, shape, letters);
    check_like("g", *g, "x", x);
    p.drive = sequence_of(with_unit_stride(bridged, *g), batch_sizes.has_value(), false);
    p.drive.group = p.H;
  }
  if (g_last) {
    check_shape("g_last", *g_last, {p.G, p.B, p.H}, "[G, B, H]");
    check_like("g_last", *g_last, "x", x);
    p.initial = state_of(with_unit_stride(bridged, *g_last));
  }
  check(members >= 0, "members: expected 0 or more, got ", members);
  for (int64_t t = 0; members > 0 && t < p.T; ++t) {
    check(rows_at(p, t) % members == 0, "members: expected a divisor of the ", rows_at(p, t),
          " rows of step ", t, ", got ", members);
  }
  const auto gradient = [&](bool need, std::optional<Tensor>& to, Shape sizes) {
    if (need) to = empty(sizes, x);
    return need ? to->mutable_data_ptr() : nullptr;
  };
  const auto sum = [&](bool need, std::optional<Tensor>& to, Shape sizes) {
    if (members == 0) return gradient(need, to, sizes);
    std::vector<int64_t> of_each{members};
    of_each.insert(of_each.end(), sizes.data, sizes.data + sizes.count);
    return gradient(need, to, of_each);
  };
  layer.backward = true;
  layer.members = members;
  layer.x_bar = gradient(need_x, bridged.x_bar, Shape(x));
  layer.weight_ih_bar = sum(need_weight_ih, bridged.weight_ih_bar, {p.G * p.H, layer.I});
  layer.weight_hh_bar = sum(need_weight_hh, bridged.weight_hh_bar, Shape(weight_hh));
  layer.bias_bar = sum(need_bias, bridged.bias_bar, {p.G * p.H});
  if (need_reset_state) {
    bridged.replaced = empty({p.G, p.B, p.H}, x, aoti_torch_dtype_float64());
    p.replaced_product = state_of(torch::stable::zero_(*bridged.replaced));
  }
  layer.walk = p;
  return bridged;
}

// Columns of the last dimension, which `groups` share.
inline int64_t columns_of_groups(const Tensor& like, int64_t groups) {
  check(like.dim() > 0, "like: expected at least one dimension, got none");
  const int64_t columns = like.size(like.dim() - 1);
  check(groups > 0 && columns % groups == 0, "groups: expected a divisor of ", columns, ", got ",
        groups);
  return columns;
}

inline Normal bridge_normal(Tensor& out, int64_t groups, int64_t seed) {
  const int64_t columns = columns_of_groups(out, groups);
  const Type type = type_of("like", out);
  check(type == Type::float32 || type == Type::float64,
        "like: expected dtype float32 or float64, got ", toString(out.scalar_type()));
  const int64_t rows = columns > 0 ? out.numel() / columns : 0;
  void* const data = out.mutable_data_ptr();
  return {data, type, rows, groups, columns / groups, static_cast<uint64_t>(seed)};
}

inline Flags bridge_flags(Tensor& out, int64_t groups, double probability, const Tensor& seed) {
  const int64_t columns = columns_of_groups(out, groups);
  check(seed.is_cpu() && seed.dim() == 0 && seed.scalar_type() == ScalarType::Long,
        "seed: expected one int64 on the CPU, got shape ", seed, " and dtype ",
        toString(seed.scalar_type()));
  check(probability > 0 && probability <= 1, "probability: expected above 0, to 1, got ",
        probability);
  const int64_t rows = columns > 0 ? out.numel() / columns : 0;
  bool* const data = static_cast<bool*>(out.mutable_data_ptr());
  const int64_t key = *static_cast<const int64_t*>(seed.const_data_ptr());
  return {data, rows, groups, columns / groups, static_cast<uint64_t>(key), probability};
}

// A layer with a leak; keep, gain and the noise's scale are one for each unit, or keep and gain
// sequences.
inline BridgedLayer bridge_leaky_layer(
    const Tensor& x, const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& keep,
    const std::optional<Tensor>& gain, const Tensor& initial, const std::optional<Tensor>& noise,
    const std::optional<Tensor>& noise_scale, const std::optional<Tensor>& batch_sizes,
    int64_t reverse_groups, int64_t nonlinearity, const std::optional<Tensor>& reset,
    const std::optional<Tensor>& reset_state, int64_t window, std::optional<int64_t> seed) {
  BridgedLayer bridged = bridge_layer(x, weight_ih, weight_hh, "initial", initial, batch_sizes,
                                      reverse_groups, nonlinearity, reset, reset_state, window);
  Problem& p = bridged.problem;
  const bool held = keep.scalar_type() == ScalarType::Bool;
  check(!held || !gain, "gain: expected none where keep is bool, got one");
  p.primitive = gain || held ? Primitive::leaky_rate : Primitive::leaky_voltage;
  const auto of_units = [&](const char* name, const Tensor& tensor) -> Sequence {
    check_shape(name, tensor, {p.G * p.H}, "[G * H]");
    check_like(name, tensor, "x", x);
    const void* data = with_unit_stride(bridged, tensor).const_data_ptr();
    return {const_cast<void*>(data), 0, 0, p.H};
  };
  const auto of_units_or_steps = [&](const char* name, const Tensor& tensor) -> Sequence {
    if (tensor.dim() == 1) return of_units(name, tensor);
    check_shape(name, tensor, shape_of_layer(p, x),
                batch_sizes ? "[G * H] or [N, G * H]" : "[G * H] or [T, B, G * H]");
    check_like(name, tensor, "x", x);
    Sequence s = sequence_of(with_unit_stride(bridged, tensor), batch_sizes.has_value(), false);
    s.group = p.H;
    return s;
  };
  if (held) {
    check_shape("keep", keep, shape_of_layer(p, x), batch_sizes ? "[N, G * H]" : "[T, B, G * H]");
    check(keep.device() == x.device(), "keep: expected to be on the device of x, got another one");
    p.held = sequence_of(with_unit_stride(bridged, keep), batch_sizes.has_value(), false);
    p.held.group = p.H;
  } else {
    p.keep = of_units_or_steps("keep", keep);
  }
  if (gain) p.gain = of_units_or_steps("gain", *gain);
  check(noise || seed || !noise_scale, "noise_scale: expected with noise, got it alone");
  check(!noise || !seed, "seed: expected without noise, got both");
  bridged.layer.draws = seed.has_value();
  bridged.layer.seed = static_cast<uint64_t>(seed.value_or(0));
  if (noise) {
    check_shape("noise", *noise, shape_of_layer(p, x),
                batch_sizes ? "[N, G * H]" : "[T, B, G * H]");
    check_like("noise", *noise, "x", x);
    bridged.kept.push_back(torch::stable::contiguous(*noise));
    bridged.layer.noise = sequence_of_layer(p, bridged.kept.back());
  }
  if (noise_scale) bridged.layer.noise_scale = of_units("noise_scale", *noise_scale).data;
  return bridged;
}

inline BridgedLayer bridge_leaky_layer_forward(
    const Tensor& x, const Tensor& weight_ih, const Tensor& weight_hh,
    const std::optional<Tensor>& bias, const Tensor& keep, const std::optional<Tensor>& gain,
    const Tensor& initial, const std::optional<Tensor>& noise,
    const std::optional<Tensor>& noise_scale, const std::optional<Tensor>& batch_sizes,
    int64_t reverse_groups, int64_t nonlinearity, const std::optional<Tensor>& reset,
    const std::optional<Tensor>& reset_state, std::optional<int64_t> seed) {
  BridgedLayer bridged =
      bridge_leaky_layer(x, weight_ih, weight_hh, keep, gain, initial, noise, noise_scale,
                         batch_sizes, reverse_groups, nonlinearity, reset, reset_state, 0, seed);
  Problem& p = bridged.problem;
  if (bias) {
    check_shape("bias", *bias, {p.G * p.H}, "[G * H]");
    check_like("bias", *bias, "x", x);
    bridged.layer.bias_ih = with_unit_stride(bridged, *bias).const_data_ptr();
  }
  bridged.out = empty(shape_of_layer(p, x), x);
  bridged.rate = empty(shape_of_layer(p, x), x);
  p.out = p.drive = sequence_of_layer(p, *bridged.out);
  p.rate = sequence_of_layer(p, *bridged.rate);
  bridged.layer.walk = p;
  return bridged;
}

// `sent_initial` and `sent_reset_state` are what W_hh multiplies of the two states.
inline BridgedLayer bridge_leaky_layer_backward(
    const std::optional<Tensor>& g, const std::optional<Tensor>& g_rate,
    const std::optional<Tensor>& g_last, const Tensor& state, const Tensor& rate, const Tensor& x,
    const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& keep,
    const std::optional<Tensor>& gain, const Tensor& initial, const Tensor& sent_initial,
    const std::optional<Tensor>& noise, const std::optional<Tensor>& batch_sizes,
    int64_t reverse_groups, int64_t nonlinearity, bool need_x, bool need_weight_ih,
    bool need_weight_hh, bool need_bias, bool need_leak, const std::optional<Tensor>& reset,
    const std::optional<Tensor>& reset_state, const std::optional<Tensor>& sent_reset_state,
    int64_t window, int64_t clip, double clip_limit) {
  const Clip clipped = clip_of(clip, clip_limit);
  check(clip == 0 || keep.scalar_type() != ScalarType::Bool,
        "clip: expected 0 (none) where keep is bool, got ", clip);
  BridgedLayer bridged =
      bridge_leaky_layer(x, weight_ih, weight_hh, keep, gain, initial, noise, {}, batch_sizes,
                         reverse_groups, nonlinearity, reset, reset_state, window, {});
  check(!need_leak || (keep.dim() == 1 && (!gain || gain->dim() == 1)),
        "need_leak: expected false where keep or gain is a sequence, got true");
  Problem& p = bridged.problem;
  Layer& layer = bridged.layer;
  const std::vector<int64_t> shape = shape_of_layer(p, x);
  const auto sequence = [&](const char* name, const Tensor& tensor) {
    check_shape(name, tensor, shape, batch_sizes ? "[N, G * H]" : "[T, B, G * H]");
    check_like(name, tensor, "x", x);
    Sequence s = sequence_of(with_unit_stride(bridged, tensor), batch_sizes.has_value(), false);
    s.group = p.H;
    return s;
  };
  const auto contiguous = [&](const char* name, const Tensor& tensor) {
    check_shape(name, tensor, shape, batch_sizes ? "[N, G * H]" : "[T, B, G * H]");
    check_like(name, tensor, "x", x);
    bridged.kept.push_back(torch::stable::contiguous(tensor));
    return sequence_of_layer(p, bridged.kept.back());
  };
  const auto of_rows = [&](const char* name, const Tensor& tensor) {
    check_shape(name, tensor, {p.G, p.B, p.H}, "[G, B, H]");
    check_like(name, tensor, "x", x);
    return state_of(with_unit_stride(bridged, tensor));
  };
  p.adjoint = true;
  p.clip = clipped;
  p.factor = contiguous("rate", rate);
  layer.state = {contiguous("state", state), p.initial, p.cuts.replacement};
  layer.sent = {p.primitive == Primitive::leaky_rate ? layer.state.sequence : p.factor,
                of_rows("sent_initial", sent_initial),
                {}};
  if (sent_reset_state) layer.sent.replacement = of_rows("sent_reset_state", *sent_reset_state);
  p.cuts.replacement = {};
  p.initial = g_last ? of_rows("g_last", *g_last) : State{};
  if (g) p.drive = sequence("g", *g);
  if (g_rate) p.rate = sequence("g_rate", *g_rate);

  const auto half = [&](const Tensor& both, int64_t index, int64_t bytes) -> State {
    char* const at = static_cast<char*>(both.mutable_data_ptr());
    return {at + index * p.G * p.B * p.H * bytes, p.B * p.H, p.H};
  };
  bridged.ends = empty({2, p.G, p.B, p.H}, x);
  p.last_product = half(*bridged.ends, 0, p.type == Type::float64 ? 8 : 4);
  p.last = half(*bridged.ends, 1, p.type == Type::float64 ? 8 : 4);
  if (reset) {
    bridged.replaced = empty({2, p.G, p.B, p.H}, x, aoti_torch_dtype_float64());
    torch::stable::zero_(*bridged.replaced);
    p.replaced_product = half(*bridged.replaced, 0, 8);
    p.replaced = half(*bridged.replaced, 1, 8);
  }
  const auto gradient = [&](bool need, std::optional<Tensor>& to, Shape sizes) {
    if (need) to = empty(sizes, x);
    return need ? to->mutable_data_ptr() : nullptr;
  };
  const int64_t units = p.G * p.H;
  layer.backward = true;
  layer.x_bar = gradient(need_x, bridged.x_bar, Shape(x));
  layer.weight_ih_bar = gradient(need_weight_ih, bridged.weight_ih_bar, {units, layer.I});
  layer.weight_hh_bar = gradient(need_weight_hh, bridged.weight_hh_bar, Shape(weight_hh));
  layer.bias_bar = gradient(need_bias, bridged.bias_bar, {units});
  layer.keep_bar = gradient(need_leak, bridged.keep_bar, {units});
  layer.gain_bar = gradient(need_leak && gain.has_value(), bridged.gain_bar, {units});
  layer.noise_scale_bar =
      gradient(need_leak && noise.has_value(), bridged.noise_scale_bar, {units});
  layer.walk = p;
  return bridged;
}

// The gradients belong to the caller; those of the weights are added to.
inline BridgedLayer bridge_layer_backward_into(
    const std::optional<Tensor>& g, const std::optional<Tensor>& g_last, const Tensor& h,
    const Tensor& x, const Tensor& weight_ih, const Tensor& weight_hh, const Tensor& h0,
    const std::optional<Tensor>& batch_sizes, int64_t reverse_groups, int64_t nonlinearity,
    const std::optional<Tensor>& x_bar, const std::optional<Tensor>& weight_ih_bar,
    const std::optional<Tensor>& weight_hh_bar, const std::optional<Tensor>& bias_bar,
    const std::optional<Tensor>& reset, const std::optional<Tensor>& reset_state, int64_t window,
    int64_t before, int64_t clip, double clip_limit, const std::optional<Tensor>& replaced) {
  check(before >= 0, "before: expected 0 or more steps, got ", before);
  const auto owned = [&](const char* name, const std::optional<Tensor>& bar,
                         const std::vector<int64_t>& shape, const char* letters) -> void* {
    if (!bar) return nullptr;
    check_shape(name, *bar, shape, letters);
    check_like(name, *bar, "x", x);
    check(bar->is_contiguous(), name, ": expected to be contiguous");
    return bar->mutable_data_ptr();
  };
  BridgedLayer bridged = bridge_layer_backward(
      g, g_last, h, x, weight_ih, weight_hh, h0, batch_sizes, reverse_groups, nonlinearity, false,
      false, false, false, reset, reset_state, window, clip, clip_limit, 0, false);
  bridged.layer.walk.cuts.before = before;
  Layer& layer = bridged.layer;
  const int64_t units = layer.walk.G * layer.walk.H;
  layer.x_bar = owned("x_bar", x_bar, {x.sizes().begin(), x.sizes().end()}, "that of x");
  layer.weight_ih_bar = owned("weight_ih_bar", weight_ih_bar, {units, layer.I}, "[G * H, I]");
  layer.weight_hh_bar =
      owned("weight_hh_bar", weight_hh_bar, {weight_hh.sizes().begin(), weight_hh.sizes().end()},
            "that of weight_hh");
  layer.bias_bar = owned("bias_bar", bias_bar, {units}, "[G * H]");
  if (replaced) {
    const Problem& p = layer.walk;
    check_shape("replaced", *replaced, {p.G, p.B, p.H}, "[G, B, H]");
    check(replaced->scalar_type() == ScalarType::Double, "replaced: expected dtype Double, got ",
          toString(replaced->scalar_type()));
    check(replaced->is_contiguous(), "replaced: expected to be contiguous");
    layer.walk.replaced_product = {replaced->mutable_data_ptr(), p.B * p.H, p.H};
  }
  layer.accumulate = true;
  return bridged;
}

}  // namespace fused_bptt
