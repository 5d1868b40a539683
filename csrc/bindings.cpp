// Python's view of the compiled core.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

namespace py = pybind11;

// Words separated by spaces, as the build passes them: "80 86 90a".
static py::tuple words(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> found;
  for (std::string word; stream >> word;) found.push_back(word);
  return py::tuple(py::cast(found));
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled CUDA core of ema_ops: raw pointers, sizes, strides and a stream; it knows no torch.";
  m.attr("architectures") = words(EMA_OPS_ARCHITECTURES);
  m.attr("ptx_architectures") = words(EMA_OPS_PTX_ARCHITECTURES);
  m.attr("nvcc_version") = EMA_OPS_NVCC_VERSION;
}
