// The products of rank K whose sum is the gradient of the features.
#pragma once
#include "kernels/kernels.h"
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

  // The gradient of an iteration as pair number `pair` of products: weighted responsibilities times the gradient of the
  // sums, and the gradient of the logits times the bases they were made with.
  EStepGradient iteration(int pair, const Features& x, const Weight& weight, const SumsGradient& sums) const {
    EStepGradient gradient;
    gradient.x = x;
    gradient.weight = weight;
    gradient.logit_rows = right(2 * pair + 1);
    gradient.sums_rows = sums.rows;
    gradient.powers = sums.powers;
    gradient.grad_mass = sums.grad_mass;
    gradient.responsibilities = left(2 * pair);
    gradient.grad_logits = left(2 * pair + 1);
    return gradient;
  }

  void* left(int64_t product) const { return left_ + product * left_bytes_; }
  void* right(int64_t product) const { return right_ + product * right_bytes_; }

 private:
  int64_t left_bytes_, right_bytes_;
  char *left_, *right_;
};

}  // namespace ema
