/* A safetensors shard: whatever the header claims, every tensor that is listed lies inside the file. */
#include "tests/fuzz/input_file.h"

#include "base/memory.h"
#include "io/safetensors_shard.h"

/* Reads every byte that a tensor claims, so that the sanitizer sees one beyond the mapping. */
static unsigned sum_bytes(const decant_tensor *tensor)
{
    const unsigned char *bytes = tensor->data;
    unsigned sum = 0;
    for (size_t i = 0; i < tensor->size_bytes; i++)
        sum += bytes[i];
    return sum;
}

static void check_extent(const decant_tensor *tensor)
{
    size_t elements = 1;
    for (int i = 0; i < tensor->dimensions; i++)
        elements *= (size_t)tensor->shape[i];
    if (elements * decant_element_bytes(tensor->element) != tensor->size_bytes)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size_bytes)
{
    decant_shard shard = {.path = (char *)input_file(data, size_bytes), .name = "input"};
    decant_shard_tensors tensors = {0};
    decant_error err;
    volatile unsigned sum = 0;
    if (decant_shard_open(&shard, &tensors, &err) == DECANT_OK)
        for (int64_t i = 0; i < tensors.count; i++)
            if (tensors.at[i].listed) {
                check_extent(&tensors.at[i].tensor);
                sum += sum_bytes(&tensors.at[i].tensor);
            }
    for (int64_t i = 0; i < tensors.count; i++)
        decant_shard_tensor_free(&tensors.at[i]);
    decant_memory_free(tensors.at);
    decant_mapped_file_close(&shard.file);
    if (decant_memory_usage_now().blocks != 0)
        abort();
    return 0;
}
