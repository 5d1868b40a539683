// Python's view of the compiled core: sizes, strides, and addresses as integers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "folded.h"
#include "hopper/defaults.h"
#include "loop.h"
#include "parts.h"
#include "unit.h"

// The emulation of the tests gives the module another name, and has no architectures.
#ifndef EMA_OPS_MODULE
#define EMA_OPS_MODULE _C
#endif
#ifndef EMA_OPS_ARCHITECTURES
#define EMA_OPS_ARCHITECTURES ""
#define EMA_OPS_PTX_ARCHITECTURES ""
#define EMA_OPS_NVCC_VERSION ""
#endif

namespace py = pybind11;
using namespace py::literals;

// Tensors come as tuples, which are cheaper to make than objects: the address, and what follows in the struct.
namespace pybind11::detail {

template <class Struct, class... Rest>
struct TensorCaster {
  PYBIND11_TYPE_CASTER(Struct, (make_caster<std::tuple<uintptr_t, Rest...>>::name));

  bool load(handle source, bool convert) {
    make_caster<std::tuple<uintptr_t, Rest...>> given;
    if (!given.load(source, convert)) return false;
    value = std::apply(
        [](uintptr_t data, Rest... rest) { return Struct{reinterpret_cast<decltype(Struct::data)>(data), rest...}; },
        cast_op<std::tuple<uintptr_t, Rest...>>(given));
    return true;
  }
};
template <>
struct type_caster<ema::Features> : TensorCaster<ema::Features, int64_t, int64_t, int64_t, int64_t, int> {};
template <>
struct type_caster<ema::Weight> : TensorCaster<ema::Weight, int64_t, int64_t, int64_t> {};
template <>
struct type_caster<ema::Bases> : TensorCaster<ema::Bases, int64_t, int64_t, int64_t, int64_t> {};

}  // namespace pybind11::detail

namespace ema {
namespace {

// Words separated by spaces, as the build passes them: "80 86 90a".
py::tuple words(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> found;
  for (std::string word; stream >> word;) found.push_back(word);
  return py::tuple(py::cast(found));
}

using Address = uintptr_t;  // 0: null

template <class T = float>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

// Where a call runs and the memory it may use: device, stream, workspace.
using Place = std::tuple<int, Address, Address>;

// Of all entry points em_forward and em_attend alone may get x in 8 bits, where the plan says so.
Call begin(const Problem& problem, const Plan& plan, const Place& place, bool eight_bits = false) {
  if (problem.eight_bits && !eight_bits)
    throw std::invalid_argument("x has 8 bits: expected 16 or 32, or em_forward or em_attend and a plan with eight_bits");
  use_device(std::get<0>(place));
  overlap_launches = plan.overlap;
  return {problem, plan, at<std::remove_pointer_t<cudaStream_t>>(std::get<1>(place))};
}
Arena arena(const Place& place) { return Arena(at<void>(std::get<2>(place))); }

void bind_problem(py::module_& m) {
  py::enum_<Dtype>(m, "Dtype")
      .value("float32", Dtype::float32)
      .value("bfloat16", Dtype::bfloat16)
      .value("float16", Dtype::float16);
  py::class_<Problem>(m, "Problem")
      .def(py::init<>())
      .def_readwrite("batch", &Problem::batch)
      .def_readwrite("heads", &Problem::heads)
      .def_readwrite("positions", &Problem::positions)
      .def_readwrite("channels", &Problem::channels)
      .def_readwrite("value_channels", &Problem::value_channels)
      .def_readwrite("num_bases", &Problem::num_bases)
      .def_readwrite("dtype", &Problem::dtype)
      .def_readwrite("eight_bits", &Problem::eight_bits)
      .def_readwrite("tf32", &Problem::tf32)
      .def_readwrite("positions_fastest", &Problem::positions_fastest)
      .def_readwrite("weighted", &Problem::weighted)
      .def_readwrite("boxed", &Problem::boxed)
      .def_readwrite("may_copy", &Problem::may_copy)
      .def_readwrite("num_iters", &Problem::num_iters)
      .def_readwrite("grad_iters", &Problem::grad_iters)
      .def_readwrite("scale", &Problem::scale)
      .def_readwrite("eps", &Problem::eps)
      .def_readwrite("eps_max", &Problem::eps_max);
}

void bind_plan(py::module_& m) {
  py::class_<Device>(m, "Device")
      .def(py::init([](int multiprocessors, int shared_memory, bool hopper, bool overlap, bool one_launch,
                       bool by_default) {
             return Device{multiprocessors, shared_memory, hopper, overlap, one_launch, by_default};
           }),
           "multiprocessors"_a, "shared_memory"_a, "hopper"_a = false, "overlap"_a = false,
           "one_launch"_a = false, "by_default"_a = false)
      .def_readonly("multiprocessors", &Device::multiprocessors)
      .def_readonly("shared_memory", &Device::shared_memory)
      .def_readonly("hopper", &Device::hopper)
      .def_readonly("overlap", &Device::overlap)
      .def_readonly("one_launch", &Device::one_launch);
  // Writable, so that tests can launch the kernels in every way that they promise to work.
  py::class_<EStepPlan>(m, "EStepPlan")
      .def_readwrite("splits", &EStepPlan::splits)
      .def_readonly("half_slots", &EStepPlan::half_slots)
      .def_readwrite("fused", &EStepPlan::fused)
      .def_readwrite("feature_slots", &EStepPlan::feature_slots)
      .def_readwrite("row_slots", &EStepPlan::row_slots)
      .def_readwrite("rows_resident", &EStepPlan::rows_resident)
      .def_readwrite("shared_memory", &EStepPlan::shared_memory)
      .def_readwrite("hopper", &EStepPlan::hopper);
  py::class_<MStepPlan>(m, "MStepPlan")
      .def_readwrite("splits", &MStepPlan::splits)
      .def_readonly("half_slots", &MStepPlan::half_slots)
      .def_readwrite("slots", &MStepPlan::slots)
      .def_readwrite("shared_memory", &MStepPlan::shared_memory)
      .def_readwrite("hopper", &MStepPlan::hopper);
  py::class_<ProductsPlan>(m, "ProductsPlan")
      .def_readwrite("hopper", &ProductsPlan::hopper)
      .def_readwrite("splits", &ProductsPlan::splits)
      .def_readwrite("slots", &ProductsPlan::slots)
      .def_readwrite("resident", &ProductsPlan::resident)
      .def_readwrite("shared_memory", &ProductsPlan::shared_memory)
      .def_readwrite("cluster", &ProductsPlan::cluster);
  py::class_<UnitTailPlan>(m, "UnitTailPlan")
      .def_readwrite("slots", &UnitTailPlan::slots)
      .def_readwrite("shared_memory", &UnitTailPlan::shared_memory)
      .def_readwrite("hopper", &UnitTailPlan::hopper)
      .def_readwrite("any_rows", &UnitTailPlan::any_rows)
      .def_readwrite("splits", &UnitTailPlan::splits)
      .def_readwrite("cluster", &UnitTailPlan::cluster);
  py::class_<LoopPlan>(m, "LoopPlan")
      .def_readwrite("one_launch", &LoopPlan::one_launch)
      .def_readwrite("cluster", &LoopPlan::cluster)
      .def_readwrite("clusters", &LoopPlan::clusters)
      .def_readwrite("positions", &LoopPlan::positions);
  py::class_<Plan>(m, "Plan")
      .def_readwrite("loop", &Plan::loop)
      .def_readwrite("e_step", &Plan::e_step)
      .def_readwrite("iteration", &Plan::iteration)
      .def_readwrite("gradient", &Plan::gradient)
      .def_readwrite("first_gradient", &Plan::first_gradient)
      .def_readwrite("last_gradient", &Plan::last_gradient)
      .def_readwrite("value_gradient", &Plan::value_gradient)
      .def_readwrite("m_step", &Plan::m_step)
      .def_readwrite("value_m_step", &Plan::value_m_step)
      .def_readwrite("reconstruct_gradient", &Plan::reconstruct_gradient)
      .def_readwrite("rows_gradient", &Plan::rows_gradient)
      .def_readwrite("reconstruction", &Plan::reconstruction)
      .def_readwrite("grad_x", &Plan::grad_x)
      .def_readwrite("value_grad_x", &Plan::value_grad_x)
      .def_readwrite("unit_tail", &Plan::unit_tail)
      .def_readwrite("copies", &Plan::copies)
      .def_readwrite("any_rows", &Plan::any_rows)
      .def_readwrite("eight_bits", &Plan::eight_bits)
      .def_readwrite("end_iteration", &Plan::end_iteration)
      .def_readwrite("overlap", &Plan::overlap);
  m.def("plan", &make_plan, "problem"_a, "device"_a, "How a problem is launched on a device; needs no device.");
}

// Every entry point comes with the bytes of workspace that it needs for a problem and a plan.
void bind_loop(py::module_& m) {
  const auto released = py::call_guard<py::gil_scoped_release>();
  m.def("em_forward_bytes", &em_forward_bytes, "problem"_a, "plan"_a);
  m.def(
      "em_forward",
      [](const Problem& problem, const Plan& plan, const Place& place, const Features& x, const Weight& weight,
         const Bases& initial, const Features& y, Address path, Address bases, Address mass, Address length) {
        em_forward(begin(problem, plan, place, plan.eight_bits), {x, y, weight, initial, at(path), at(bases), at(mass), at(length)},
                   arena(place));
      },
      "problem"_a, "plan"_a, "place"_a, "x"_a, "weight"_a, "initial"_a, "y"_a, "path"_a, "bases"_a, "mass"_a,
      "length"_a, released);
  m.def("em_attend_bytes", &em_attend_bytes, "problem"_a, "plan"_a);
  m.def(
      "em_attend",
      [](const Problem& problem, const Plan& plan, const Place& place, const Features& x, const Weight& weight,
         const Bases& initial, const Features& y, Address bases) {
        Forward io{x, y, weight, initial};
        io.bases = at(bases);
        em_attend(begin(problem, plan, place, plan.eight_bits), io, arena(place));
      },
      "problem"_a, "plan"_a, "place"_a, "x"_a, "weight"_a, "initial"_a, "y"_a, "bases"_a, released);
  m.def("em_backward_bytes", &em_backward_bytes, "problem"_a, "plan"_a);
  m.def(
      "em_backward",
      [](const Problem& problem, const Plan& plan, const Place& place, const Features& x, const Weight& weight,
         const Features& grad_y, Address grad_bases, Address path, Address bases, Address mass, Address length,
         const Features& grad_x, Address grad_initial) {
        em_backward(begin(problem, plan, place),
                    {x, grad_y, grad_x, weight, at(path), at(bases), at(mass), at(length), at(grad_bases),
                     at(grad_initial)},
                    arena(place));
      },
      "problem"_a, "plan"_a, "place"_a, "x"_a, "weight"_a, "grad_y"_a, "grad_bases"_a, "path"_a, "bases"_a, "mass"_a,
      "length"_a, "grad_x"_a, "grad_initial"_a, released);
}

void bind_parts(py::module_& m) {
  const auto released = py::call_guard<py::gil_scoped_release>();
  m.def("em_step_bytes", &em_step_bytes, "problem"_a, "plan"_a);
  m.def(
      "em_step",
      [](const Problem& problem, const Plan& plan, const Place& place, const Features& x, const Weight& weight,
         const Bases& bases, Address logit_bias, Address sums, Address mass) {
        em_step(begin(problem, plan, place), {x, weight, bases, at(logit_bias), at(sums), at(mass)}, arena(place));
      },
      "problem"_a, "plan"_a, "place"_a, "x"_a, "weight"_a, "bases"_a, "logit_bias"_a, "sums"_a, "mass"_a, released);
  m.def("em_step_backward_bytes", &em_step_backward_bytes, "problem"_a, "plan"_a);
  m.def(
      "em_step_backward",
      [](const Problem& problem, const Plan& plan, const Place& place, const Features& x, const Weight& weight,
         const Bases& bases, Address logit_bias, Address grad_sums, Address grad_mass, const Features& grad_x,
         Address grad_bases, Address grad_logit_bias) {
        em_step_backward(begin(problem, plan, place),
                         {x, grad_x, weight, bases, at(logit_bias), at(grad_sums), at(grad_mass), at(grad_bases),
                          at(grad_logit_bias)},
                         arena(place));
      },
      "problem"_a, "plan"_a, "place"_a, "x"_a, "weight"_a, "bases"_a, "logit_bias"_a, "grad_sums"_a, "grad_mass"_a,
      "grad_x"_a, "grad_bases"_a, "grad_logit_bias"_a, released);
  m.def("em_reconstruct_bytes", &em_reconstruct_bytes, "problem"_a, "plan"_a);
  m.def(
      "em_reconstruct",
      [](const Problem& problem, const Plan& plan, const Place& place, const Features& x, const Bases& logit_bases,
         const Bases& value_bases, Address logit_bias, const Features& y) {
        em_reconstruct(begin(problem, plan, place), {x, y, logit_bases, value_bases, at(logit_bias)}, arena(place));
      },
      "problem"_a, "plan"_a, "place"_a, "x"_a, "logit_bases"_a, "value_bases"_a, "logit_bias"_a, "y"_a, released);
  m.def("em_reconstruct_backward_bytes", &em_reconstruct_backward_bytes, "problem"_a, "plan"_a);
  m.def(
      "em_reconstruct_backward",
      [](const Problem& problem, const Plan& plan, const Place& place, const Features& x, const Bases& logit_bases,
         const Bases& value_bases, Address logit_bias, const Features& grad_y, const Features& grad_x,
         Address grad_logit_bases, Address grad_value_bases, Address grad_logit_bias) {
        em_reconstruct_backward(begin(problem, plan, place),
                                {x, grad_y, grad_x, logit_bases, value_bases, at(logit_bias), at(grad_logit_bases),
                                 at(grad_value_bases), at(grad_logit_bias)},
                                arena(place));
      },
      "problem"_a, "plan"_a, "place"_a, "x"_a, "logit_bases"_a, "value_bases"_a, "logit_bias"_a, "grad_y"_a,
      "grad_x"_a, "grad_logit_bases"_a, "grad_value_bases"_a, "grad_logit_bias"_a, released);
}

void bind_unit(py::module_& m) {
  const auto released = py::call_guard<py::gil_scoped_release>();
  m.def("em_folded_forward_bytes", &em_folded_forward_bytes, "problem"_a, "plan"_a);
  m.def(
      "em_folded_forward",
      [](const Problem& problem, const Plan& plan, const Place& place, const Features& x, const Weight& weight,
         const Bases& initial, Address conv_weight, Address conv_bias, const Features& y, Address path, Address sums,
         Address bases, Address mass, Address length) {
        em_folded_forward(begin(problem, plan, place),
                          {{x, weight, initial, {at<void>(conv_weight), at(conv_bias)}, at(path), at(sums), at(bases),
                            at(mass), at(length)},
                           y},
                          arena(place));
      },
      "problem"_a, "plan"_a, "place"_a, "x"_a, "weight"_a, "initial"_a, "conv_weight"_a, "conv_bias"_a, "y"_a, "path"_a,
      "sums"_a, "bases"_a, "mass"_a, "length"_a, released);
  m.def("em_folded_backward_bytes", &em_folded_backward_bytes, "problem"_a, "plan"_a);
  m.def(
      "em_folded_backward",
      [](const Problem& problem, const Plan& plan, const Place& place, const Features& x, const Weight& weight,
         Address conv_weight, Address conv_bias, const Features& grad_y, Address grad_bases, Address path,
         Address bases, Address mass, Address length, const Features& grad_x, Address grad_sums, Address logit_sums,
         Address logit_mass, Address grad_initial) {
        em_folded_backward(begin(problem, plan, place),
                           {x, grad_y, grad_x, weight, {at<void>(conv_weight), at(conv_bias)}, at(path), at(bases),
                            at(mass), at(length), at(grad_bases), at(grad_sums), at(logit_sums), at(logit_mass),
                            at(grad_initial)},
                           arena(place));
      },
      "problem"_a, "plan"_a, "place"_a, "x"_a, "weight"_a, "conv_weight"_a, "conv_bias"_a, "grad_y"_a, "grad_bases"_a,
      "path"_a, "bases"_a, "mass"_a, "length"_a, "grad_x"_a, "grad_sums"_a, "logit_sums"_a, "logit_mass"_a,
      "grad_initial"_a, released);
  m.def("em_unit_bytes", &em_unit_bytes, "problem"_a, "plan"_a);
  m.def(
      "em_unit",
      [](const Problem& problem, const Plan& plan, const Place& place, const Features& x, const Weight& weight,
         const Bases& initial, Address weight1, Address bias1, Address weight2, Address bias2, const Features& y,
         Address bases) {
        em_unit(begin(problem, plan, place),
                {x, y, weight, initial, {at<void>(weight1), at(bias1)}, {at<void>(weight2), at(bias2)}, at(bases)},
                arena(place));
      },
      "problem"_a, "plan"_a, "place"_a, "x"_a, "weight"_a, "initial"_a, "weight1"_a, "bias1"_a, "weight2"_a,
      "bias2"_a, "y"_a, "bases"_a, released);
}

}  // namespace
}  // namespace ema

PYBIND11_MODULE(EMA_OPS_MODULE, m) {
  m.doc() = "The compiled CUDA core of ema_ops: raw pointers, sizes, strides and a stream; it knows no torch.";
  m.attr("architectures") = ema::words(EMA_OPS_ARCHITECTURES);
  m.attr("hopper_by_default") = ema::hopper::ANY_BY_DEFAULT;
  m.attr("ptx_architectures") = ema::words(EMA_OPS_PTX_ARCHITECTURES);
  m.attr("nvcc_version") = EMA_OPS_NVCC_VERSION;
  m.attr("max_channels") = ema::MAX_CHANNELS;
  m.attr("max_bases") = ema::MAX_BASES;
  ema::bind_problem(m);
  ema::bind_plan(m);
  ema::bind_loop(m);
  ema::bind_parts(m);
  ema::bind_unit(m);
}
