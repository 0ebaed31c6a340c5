// What the loss ops hand to their kernels.
//   N rows, L labels (columns). Entry i of a matrix is (i / L, i % L): all kernels count entries row by row,
//   whatever the strides.
#pragma once

#include <cstdint>

namespace spml {

// How one element of a matrix is stored.
enum class Element : int {
  kFloat32,
  kFloat64,
  kFloat16,
  kBFloat16,
  kInt8,
  kUInt8,  // and bool
  kInt32,
  kInt64,
};

// An (N, L) view of any strides; with `index`, row r of the view is row index[r] of the data.
struct Matrix {
  const void* data = nullptr;
  Element element = Element::kFloat32;
  int64_t row_stride = 0;
  int64_t column_stride = 0;
  const int64_t* index = nullptr;  // [N] or null
  int64_t data_rows = 0;           // what index[r] must stay below
};

// Labels in one of two forms: a matrix (1 observed positive, 0 unobserved, -1 observed negative, or full labels in
// [0, 1]), or the column of each row's one observed positive (-1: none), which is never expanded.
struct Labels {
  Matrix matrix;                       // data is null in the index form
  const int64_t* positives = nullptr;  // [N], the index form
  const int64_t* negatives = nullptr;  // [N] or null: a column of each row that counts as observed negative
};

enum class LossKind : int {
  kElementwise,
  kRole,     // an elementwise loss between the classifier and the label estimator, both ways
  kRanking,  // pairwise ranking within each row
};

constexpr int kMaxHyper = 10;

struct LossParams {
  Matrix logits;                      // [N, L]
  Labels labels;
  Matrix aux;                         // [N, L] what some losses read beside the label; the table of ROLE
  const void* class_weight = nullptr; // [L] of the compute type, or null
  const void* threshold = nullptr;    // [1] of the compute type, or null
  const double* k_hat = nullptr;      // [1 or 2] expected positives per row, of the logits and of ROLE's table
  void* values = nullptr;             // [N, L] or null
  void* grad = nullptr;               // [N, L] or null: the gradient of the logits, row by row
  void* aux_grad = nullptr;           // [N, L] or null: that of ROLE's table rows, of the compute type
  Element element = Element::kFloat32;  // of values and grad
  int64_t rows = 0;
  int64_t columns = 0;
  int64_t first_column = 0;   // where logits are a chunk of a wider matrix: the label of their first column
  int64_t label_columns = 0;  // and how many labels there are
  double hyper[kMaxHyper] = {};
  double eps = 0;
  double scale = 1;           // of every value and derivative
  double out_scale = 1;       // of their sum
  double expected_positives = 0;  // k
  double penalty = 0;         // times (k_hat - k)^2: what the penalty on expected positives adds to the reduced loss
  double penalty_slope = 0;   // times (k_hat - k) and p (1 - p): its gradient
  int loss = 0;
  LossKind kind = LossKind::kElementwise;

  // The reduced loss: one partial sum a block of entries, always of the same entries, added up in order.
  double* partial = nullptr;
  void* out = nullptr;  // [1] of the compute type, or null
  // Entry of an invalid label, or -1 - row of an invalid index; kNoInvalid when all is well.
  int64_t* invalid = nullptr;

  void* workspace = nullptr;  // [kWorkspaceBytes] of a GPU's memory
};

constexpr int kMaxBlocks = 4096;  // of a launch on a GPU
constexpr int64_t kWorkspaceBytes = 8 * (kMaxBlocks + 4);

constexpr int64_t kNoInvalid = INT64_MAX;

// What draw_unobserved, large_loss_threshold and flip_labels need beside logits and labels.
struct SelectParams {
  Matrix logits;  // [N, L]
  Labels labels;
  Matrix flips;   // [N, L] rows of a table of labels that were flipped for good, or no data
  int64_t rows = 0, columns = 0;
  int64_t k = 0;              // how many of the largest unobserved logits
  const void* threshold = nullptr;  // [1] of the compute type
  uint8_t* flip_table = nullptr;    // what `flips` views, to write
  uint64_t seed = 0;
  const int64_t* step = nullptr;  // [1]
  void* workspace = nullptr;      // [kSelectionBytes] of a GPU's memory
};

constexpr int kDigitBits = 11;  // of a key, decided in one pass of large_loss_threshold
constexpr int64_t kSelectionBytes = 8 * ((1 << kDigitBits) + 8);

}  // namespace spml
