/* As much of PyTorch as SqueezeLLM's kernel file names: a pointer with a shape, floats only. The other headers
 * that it includes are here too, empty. */
#ifndef DECANT_TESTS_PEERS_TORCH_H
#define DECANT_TESTS_PEERS_TORCH_H

namespace torch {

struct Tensor {
    void *elements;
    int sizes[2];

    template <typename element> element *data_ptr() const
    {
        return (element *)elements;
    }
    template <typename element> element *data() const
    {
        return (element *)elements;
    }
    int size(int dimension) const
    {
        return sizes[dimension];
    }
};

} // namespace torch

#define AT_DISPATCH_FLOATING_TYPES(type, name, ...)                                                            \
    do {                                                                                                       \
        typedef float scalar_t;                                                                                \
        (__VA_ARGS__)();                                                                                       \
    } while (0)

#endif
