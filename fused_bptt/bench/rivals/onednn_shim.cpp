// A C interface to oneDNN's vanilla_rnn_forward and vanilla_rnn_backward, for benchmarks/onednn.py.
//
// Only oneDNN's public API is used, in the way its documentation advises: weights in the layout
// that the primitive asks for (format_tag::any), everything else plain. Tensors at this boundary
// are float32 and contiguous, in torch.nn.RNN's layouts:
//   x [T, B, I]   h_0 [B, H]   W_ih [H, I]   W_hh [H, H]   b_ih, b_hh [H]   output [T, B, H]
//
// What a real training step would have to repeat, but is left out of the timed calls in oneDNN's
// favour: memory is allocated once, and the weights are brought into its layouts by load().

#include <omp.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <string>
#include <unordered_map>

#include <oneapi/dnnl/dnnl.hpp>

namespace {

using dnnl::memory;
using dnnl::prop_kind;
using tag = memory::format_tag;
using Arguments = std::unordered_map<int, memory>;
using Forward = dnnl::vanilla_rnn_forward;
using Backward = dnnl::vanilla_rnn_backward;

thread_local std::string last_error;

memory::desc f32(const memory::dims& sizes, tag layout) {
  return {sizes, memory::data_type::f32, layout};
}

struct Shape {
  memory::dim T, B, I, H;

  // Layers and directions are 1; oneDNN orders weights as layer, direction, input, gate, output.
  memory::desc x() const { return f32({T, B, I}, tag::tnc); }
  memory::desc state() const { return f32({1, 1, B, H}, tag::ldnc); }
  memory::desc bias() const { return f32({1, 1, 1, H}, tag::ldgo); }
  memory::desc output() const { return f32({T, B, H}, tag::tnc); }
  memory::desc weight(memory::dim inputs, tag layout) const {
    return f32({1, 1, inputs, 1, H}, layout);
  }
};

class Recurrence {
 public:
  explicit Recurrence(const Shape& shape)
      : shape_(shape),
        engine_(dnnl::engine::kind::cpu, 0),
        stream_(engine_),
        inference_(describe_forward(prop_kind::forward_inference)),
        training_(describe_forward(prop_kind::forward_training)),
        backward_(describe_backward()) {
    const memory x(shape.x(), engine_);
    const memory h_0(shape.state(), engine_);
    const memory bias(shape.bias(), engine_);
    const memory output(shape.output(), engine_);
    const Arguments shared{{DNNL_ARG_SRC_LAYER, x},
                           {DNNL_ARG_SRC_ITER, h_0},
                           {DNNL_ARG_BIAS, bias},
                           {DNNL_ARG_DST_LAYER, output}};

    inference_arguments_ = shared;
    add_weights(inference_arguments_, inference_);

    training_arguments_ = shared;
    add_weights(training_arguments_, training_);
    const memory workspace(training_.workspace_desc(), engine_);
    training_arguments_.emplace(DNNL_ARG_WORKSPACE, workspace);

    backward_arguments_ = shared;
    add_weights(backward_arguments_, backward_);
    backward_arguments_.emplace(DNNL_ARG_WORKSPACE, workspace);
    const auto add = [&](int name, const memory::desc& desc) {
      backward_arguments_.emplace(name, memory(desc, engine_));
    };
    add(DNNL_ARG_DIFF_DST_LAYER, shape.output());
    add(DNNL_ARG_DIFF_SRC_LAYER, shape.x());
    add(DNNL_ARG_DIFF_SRC_ITER, shape.state());
    add(DNNL_ARG_DIFF_WEIGHTS_LAYER, backward_.diff_weights_layer_desc());
    add(DNNL_ARG_DIFF_WEIGHTS_ITER, backward_.diff_weights_iter_desc());
    add(DNNL_ARG_DIFF_BIAS, shape.bias());

    run_inference_ = Forward(inference_);
    run_training_ = Forward(training_);
    run_backward_ = Backward(backward_);
  }

  void load(const float* x, const float* h_0, const float* w_ih, const float* w_hh,
            const float* b_ih, const float* b_hh, const float* grad_output) {
    copy_in(training_arguments_.at(DNNL_ARG_SRC_LAYER), x);
    copy_in(training_arguments_.at(DNNL_ARG_SRC_ITER), h_0);
    copy_in(backward_arguments_.at(DNNL_ARG_DIFF_DST_LAYER), grad_output);
    auto* bias = data(training_arguments_.at(DNNL_ARG_BIAS));
    for (memory::dim j = 0; j < shape_.H; ++j) bias[j] = b_ih[j] + b_hh[j];
    for (Arguments* arguments :
         {&inference_arguments_, &training_arguments_, &backward_arguments_}) {
      reorder_in(w_ih, shape_.I, arguments->at(DNNL_ARG_WEIGHTS_LAYER));
      reorder_in(w_hh, shape_.H, arguments->at(DNNL_ARG_WEIGHTS_ITER));
    }
  }

  void forward() {
    run_inference_.execute(stream_, inference_arguments_);
    stream_.wait();
  }

  void forward_backward() {
    run_training_.execute(stream_, training_arguments_);
    // The primitive adds to the gradients of the parameters.
    for (int name : {DNNL_ARG_DIFF_WEIGHTS_LAYER, DNNL_ARG_DIFF_WEIGHTS_ITER, DNNL_ARG_DIFF_BIAS}) {
      const memory& gradient = backward_arguments_.at(name);
      std::memset(gradient.get_data_handle(), 0, gradient.get_desc().get_size());
    }
    run_backward_.execute(stream_, backward_arguments_);
    stream_.wait();
  }

  void read(float* output, float* dx, float* dh_0, float* dw_ih, float* dw_hh, float* dbias) {
    copy_out(backward_arguments_.at(DNNL_ARG_DST_LAYER), output);
    copy_out(backward_arguments_.at(DNNL_ARG_DIFF_SRC_LAYER), dx);
    copy_out(backward_arguments_.at(DNNL_ARG_DIFF_SRC_ITER), dh_0);
    reorder_out(backward_arguments_.at(DNNL_ARG_DIFF_WEIGHTS_LAYER), shape_.I, dw_ih);
    reorder_out(backward_arguments_.at(DNNL_ARG_DIFF_WEIGHTS_ITER), shape_.H, dw_hh);
    copy_out(backward_arguments_.at(DNNL_ARG_DIFF_BIAS), dbias);
  }

  std::string implementations() const {
    return std::string("forward without gradient ") + inference_.impl_info_str() +
           ", forward for training " + training_.impl_info_str() + ", backward " +
           backward_.impl_info_str();
  }

 private:
  Forward::primitive_desc describe_forward(prop_kind kind) const {
    return {engine_,
            kind,
            dnnl::algorithm::eltwise_tanh,
            dnnl::rnn_direction::unidirectional_left2right,
            shape_.x(),
            shape_.state(),
            shape_.weight(shape_.I, tag::any),
            shape_.weight(shape_.H, tag::any),
            shape_.bias(),
            shape_.output(),
            memory::desc()};  // h_n is the last row of the output
  }

  Backward::primitive_desc describe_backward() const {
    const auto w_ih = shape_.weight(shape_.I, tag::any);
    const auto w_hh = shape_.weight(shape_.H, tag::any);
    return {engine_,
            prop_kind::backward,
            dnnl::algorithm::eltwise_tanh,
            dnnl::rnn_direction::unidirectional_left2right,
            shape_.x(),
            shape_.state(),
            w_ih,
            w_hh,
            shape_.bias(),
            shape_.output(),
            memory::desc(),
            shape_.x(),
            shape_.state(),
            w_ih,
            w_hh,
            shape_.bias(),
            shape_.output(),
            memory::desc(),
            training_};
  }

  template <class Description>
  void add_weights(Arguments& arguments, const Description& description) const {
    arguments.emplace(DNNL_ARG_WEIGHTS_LAYER, memory(description.weights_layer_desc(), engine_));
    arguments.emplace(DNNL_ARG_WEIGHTS_ITER, memory(description.weights_iter_desc(), engine_));
  }

  static float* data(const memory& m) { return static_cast<float*>(m.get_data_handle()); }

  static void copy_in(const memory& to, const float* from) {
    std::memcpy(data(to), from, to.get_desc().get_size());
  }

  static void copy_out(const memory& from, float* to) {
    std::memcpy(to, data(from), from.get_desc().get_size());
  }

  void reorder_in(const float* from, memory::dim inputs, memory& to) {
    memory source(shape_.weight(inputs, tag::ldgoi), engine_, const_cast<float*>(from));
    dnnl::reorder(source, to).execute(stream_, source, to);
    stream_.wait();
  }

  void reorder_out(memory& from, memory::dim inputs, float* to) {
    memory target(shape_.weight(inputs, tag::ldgoi), engine_, to);
    dnnl::reorder(from, target).execute(stream_, from, target);
    stream_.wait();
  }

  Shape shape_;
  dnnl::engine engine_;
  dnnl::stream stream_;
  Forward::primitive_desc inference_, training_;
  Backward::primitive_desc backward_;
  Forward run_inference_, run_training_;
  Backward run_backward_;
  Arguments inference_arguments_, training_arguments_, backward_arguments_;
};

// Runs the action; an exception becomes -1 and shim_error()'s text.
template <class Action>
int guarded(Action&& action) {
  try {
    action();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return -1;
  }
}

}  // namespace

extern "C" {

const char* shim_error() { return last_error.c_str(); }

// The version of the library that was loaded, which may differ from that of the headers.
void shim_version(int* major, int* minor, int* patch) {
  const auto* version = dnnl::version();
  *major = version->major;
  *minor = version->minor;
  *patch = version->patch;
}

void shim_header_version(int* major, int* minor, int* patch) {
  *major = DNNL_VERSION_MAJOR;
  *minor = DNNL_VERSION_MINOR;
  *patch = DNNL_VERSION_PATCH;
}

void* shim_create(std::int64_t T, std::int64_t B, std::int64_t I, std::int64_t H, int threads) {
  Recurrence* made = nullptr;
  guarded([&] {
    omp_set_num_threads(threads);
    made = new Recurrence({T, B, I, H});
  });
  return made;
}

void shim_destroy(void* handle) { delete static_cast<Recurrence*>(handle); }

int shim_load(void* handle, const float* x, const float* h_0, const float* w_ih, const float* w_hh,
              const float* b_ih, const float* b_hh, const float* grad_output) {
  return guarded(
      [&] { static_cast<Recurrence*>(handle)->load(x, h_0, w_ih, w_hh, b_ih, b_hh, grad_output); });
}

int shim_forward(void* handle) {
  return guarded([&] { static_cast<Recurrence*>(handle)->forward(); });
}

int shim_forward_backward(void* handle) {
  return guarded([&] { static_cast<Recurrence*>(handle)->forward_backward(); });
}

int shim_read(void* handle, float* output, float* dx, float* dh_0, float* dw_ih, float* dw_hh,
              float* dbias) {
  return guarded(
      [&] { static_cast<Recurrence*>(handle)->read(output, dx, dh_0, dw_ih, dw_hh, dbias); });
}

const char* shim_implementations(void* handle) {
  static thread_local std::string text;
  text = static_cast<Recurrence*>(handle)->implementations();
  return text.c_str();
}

}  // extern "C"
