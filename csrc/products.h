// The products of rank K whose sum is the gradient of the features.
#pragma once
#include "workspace.h"

namespace ema {

// left [count, G, N, Kp] and right [count, G, Kp, Cp], in the dtype of the features.
class Products {
 public:
  Products(const Problem& problem, int count, Arena& arena)
      : left_bytes_(responsibility_bytes(problem)),
        right_bytes_(row_bytes(problem, problem.channels)),
        left_(static_cast<char*>(arena.take(count * left_bytes_))),
        right_(static_cast<char*>(arena.take(count * right_bytes_))) {}

  void* left(int64_t product) const { return left_ + product * left_bytes_; }
  void* right(int64_t product) const { return right_ + product * right_bytes_; }

 private:
  int64_t left_bytes_, right_bytes_;
  char *left_, *right_;
};

}  // namespace ema
