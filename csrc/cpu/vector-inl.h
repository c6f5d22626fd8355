// The vector types of one ISA, in the compiler's vector extensions: + - * /, comparisons, ?: and
// conversions need no intrinsic.
// Included inside the ISA's namespace, after kVectorBytes.

template <class C>
struct VectorOf {
  typedef C type __attribute__((vector_size(kVectorBytes)));
};
template <class C>
using Vec = typename VectorOf<C>::type;

// As many 16-bit numbers as Vec<float> has lanes.
typedef uint16_t Half16 __attribute__((vector_size(kVectorBytes / 2)));

template <class C>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(C));
