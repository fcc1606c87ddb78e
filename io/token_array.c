/* Token ids out of a .npy file. The header is a Python dictionary literal; exactly the three keys that NumPy
 * writes are understood, in any order, and every number in it is checked against the size of the file before
 * use. */
#include "io/token_array.h"

#include "base/memory.h"
#include "io/checksum.h"
#include "io/mapped_file.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

enum { LARGEST_DIMENSIONS = 8 };

/* What the header says. */
typedef struct npy_header {
    char descr[16];
    bool fortran_order;
    int dimensions;
    int64_t shape[LARGEST_DIMENSIONS];
    bool has_descr, has_order, has_shape;
} npy_header;

/* The rest of the header that is still to be read. */
typedef struct cursor {
    const char *at, *end;
} cursor;

static void skip_space(cursor *text)
{
    while (text->at < text->end && strchr(" \t\r\n", *text->at) && *text->at)
        text->at++;
}

/* Takes the byte when it comes next, after white space. */
static bool take(cursor *text, char byte)
{
    skip_space(text);
    if (text->at == text->end || *text->at != byte)
        return false;
    text->at++;
    return true;
}

static bool take_word(cursor *text, const char *word)
{
    size_t length = strlen(word);
    skip_space(text);
    if ((size_t)(text->end - text->at) < length || memcmp(text->at, word, length) != 0)
        return false;
    text->at += length;
    return true;
}

/* A quoted string without escapes; false when it is none or does not fit. */
static bool take_string(cursor *text, char *string, size_t size)
{
    skip_space(text);
    char quote = text->at < text->end ? *text->at : '\0';
    if (quote != '\'' && quote != '"')
        return false;
    const char *first = ++text->at;
    while (text->at < text->end && *text->at != quote && *text->at >= ' ' && *text->at <= '~')
        text->at++;
    size_t length = (size_t)(text->at - first);
    if (text->at == text->end || *text->at != quote || length >= size)
        return false;
    memcpy(string, first, length);
    string[length] = '\0';
    text->at++;
    return true;
}

static bool take_count(cursor *text, int64_t *count)
{
    skip_space(text);
    const char *first = text->at;
    int64_t value = 0;
    for (; text->at < text->end && *text->at >= '0' && *text->at <= '9'; text->at++)
        if (__builtin_mul_overflow(value, (int64_t)10, &value) ||
            __builtin_add_overflow(value, (int64_t)(*text->at - '0'), &value))
            return false;
    *count = value;
    return text->at > first;
}

/* "()", "(5,)", "(2, 512)" */
static bool take_shape(cursor *text, npy_header *header)
{
    if (!take(text, '('))
        return false;
    for (header->dimensions = 0; !take(text, ')'); header->dimensions++) {
        if (header->dimensions == LARGEST_DIMENSIONS || !take_count(text, &header->shape[header->dimensions]))
            return false;
        if (!take(text, ',')) {
            header->dimensions++;
            return take(text, ')');
        }
    }
    return true;
}

static bool take_entry(cursor *text, npy_header *header)
{
    char key[16];
    if (!take_string(text, key, sizeof key) || !take(text, ':'))
        return false;
    if (strcmp(key, "descr") == 0 && !header->has_descr)
        return header->has_descr = take_string(text, header->descr, sizeof header->descr);
    if (strcmp(key, "shape") == 0 && !header->has_shape)
        return header->has_shape = take_shape(text, header);
    if (strcmp(key, "fortran_order") == 0 && !header->has_order) {
        header->fortran_order = take_word(text, "True");
        return header->has_order = header->fortran_order || take_word(text, "False");
    }
    return false;
}

static bool parse_dictionary(cursor text, npy_header *header)
{
    if (!take(&text, '{'))
        return false;
    while (!take(&text, '}')) {
        if (!take_entry(&text, header))
            return false;
        if (!take(&text, ',')) {
            if (!take(&text, '}'))
                return false;
            break;
        }
    }
    skip_space(&text);
    return text.at == text.end && header->has_descr && header->has_order && header->has_shape;
}

/* Reads the header; *data_offset is where the elements begin. */
static decant_status read_header(const decant_mapped_file *file, const char *path, npy_header *header,
                                 size_t *data_offset, decant_error *err)
{
    const unsigned char *bytes = file->data;
    memset(header, 0, sizeof *header);
    if (file->size_bytes < 10 || memcmp(bytes, "\x93NUMPY", 6) != 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: is no NumPy array file (.npy)", path);
    int version = bytes[6];
    if (version < 1 || version > 3 || bytes[7] != 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: .npy version %d.%d is not known", path, version,
                            bytes[7]);
    size_t prefix = version == 1 ? 10 : 12;
    size_t length = bytes[8] | (size_t)bytes[9] << 8;
    if (file->size_bytes >= prefix && version > 1)
        length |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
    if (file->size_bytes < prefix || file->size_bytes - prefix < length)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: ends within its header", path);
    const char *text = (const char *)bytes + prefix;
    if (!parse_dictionary((cursor){text, text + length}, header))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: its header cannot be understood", path);
    *data_offset = prefix + length;
    return DECANT_OK;
}

/* Checks that the array is one that decant takes and that the file holds it exactly. */
static decant_status check_header(const npy_header *header, const char *path, size_t data_bytes,
                                  size_t *element_bytes, decant_error *err)
{
    if (strcmp(header->descr, "<i4") != 0 && strcmp(header->descr, "<i8") != 0)
        return DECANT_ERROR(
            err, DECANT_ERROR_INPUT,
            "%s: its elements are \"%s\"; token ids are little-endian int32 or int64 (<i4, <i8)", path,
            header->descr);
    if (header->dimensions != 1 && header->dimensions != 2)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: has %d dimensions; token arrays have 1 or 2", path,
                            header->dimensions);
    if (header->fortran_order && header->dimensions == 2)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: is in Fortran order; save numpy.ascontiguousarray of it", path);
    *element_bytes = header->descr[2] == '4' ? 4 : 8;
    int64_t bytes = (int64_t)*element_bytes;
    for (int d = 0; d < header->dimensions; d++)
        if (__builtin_mul_overflow(bytes, header->shape[d], &bytes))
            return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: its shape is too large", path);
    if ((uint64_t)bytes > data_bytes)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: is cut short: %zu bytes of elements, its shape needs %lld", path, data_bytes,
                            (long long)bytes);
    if ((uint64_t)bytes < data_bytes)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: has %zu bytes after its elements", path,
                            data_bytes - (size_t)bytes);
    return DECANT_OK;
}

/* How many sequences of which length the array is cut into. */
static decant_status cut(const npy_header *header, const char *path, int64_t window_length,
                         const char *window_option, int64_t maximum_sequences, decant_token_array *array,
                         decant_error *err)
{
    bool windows = header->dimensions == 1, uncut = window_length == DECANT_TOKENS_UNCUT;
    if (windows && uncut)
        window_length = header->shape[0] > 0 ? header->shape[0] : 1;
    if (windows && !uncut && window_length < 2)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: is one-dimensional and needs a sequence length of at least 2 to be cut into",
                            path);
    array->length = windows ? window_length : header->shape[1];
    array->sequences = windows ? header->shape[0] / window_length : header->shape[0];
    if (maximum_sequences > 0 && array->sequences > maximum_sequences)
        array->sequences = maximum_sequences;
    if (uncut && (array->sequences < 1 || array->length < 1))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: has no token", path);
    if (windows && array->sequences < 1)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: its %lld tokens are fewer than one window of %lld; take more of them, or a "
                            "smaller %s",
                            path, (long long)header->shape[0], (long long)array->length, window_option);
    if (!uncut && (array->sequences < 1 || array->length < 2))
        return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                            "%s: %lld sequences of %lld tokens leave no token to predict", path,
                            (long long)header->shape[0], (long long)array->length);
    return DECANT_OK;
}

/* Copies the kept elements, whatever their alignment in the file, and checks each. */
static decant_status copy_tokens(const unsigned char *elements, size_t element_bytes, int64_t vocabulary_size,
                                 const char *path, decant_token_array *array, decant_error *err)
{
    int64_t count = array->sequences * array->length;
    for (int64_t i = 0; i < count; i++) {
        int32_t narrow;
        int64_t token;
        if (element_bytes == sizeof narrow) {
            memcpy(&narrow, elements + (size_t)i * sizeof narrow, sizeof narrow);
            token = narrow;
        } else {
            memcpy(&token, elements + (size_t)i * sizeof token, sizeof token);
        }
        if (token < 0 || token >= vocabulary_size || token > INT32_MAX)
            return DECANT_ERROR(err, DECANT_ERROR_INPUT,
                                "%s: token %lld of sequence %lld is %lld, outside the vocabulary of %lld", path,
                                (long long)(i % array->length), (long long)(i / array->length),
                                (long long)token, (long long)vocabulary_size);
        array->tokens[i] = (int32_t)token;
    }
    return DECANT_OK;
}

decant_status decant_token_array_read(const char *path, int64_t window_length, const char *window_option,
                                      int64_t maximum_sequences, int64_t vocabulary_size,
                                      decant_token_array *array, decant_error *err)
{
    decant_status status = DECANT_OK;
    decant_mapped_file file = {0};
    npy_header header;
    size_t data_offset = 0, element_bytes = 0;
    void *tokens = NULL;
    memset(array, 0, sizeof *array);
    DECANT_TRY(decant_mapped_file_open(path, &file, err));
    DECANT_TRY(read_header(&file, path, &header, &data_offset, err));
    DECANT_TRY(check_header(&header, path, file.size_bytes - data_offset, &element_bytes, err));
    DECANT_TRY(cut(&header, path, window_length, window_option, maximum_sequences, array, err));
    size_t size_bytes = (size_t)array->sequences * (size_t)array->length * sizeof *array->tokens;
    DECANT_TRY(decant_memory_allocate(size_bytes, "token ids", &tokens, err));
    array->tokens = tokens;
    DECANT_TRY(copy_tokens(file.data + data_offset, element_bytes, vocabulary_size, path, array, err));
    array->checksum = decant_checksum(0, array->tokens, size_bytes);
done:
    status = decant_mapped_file_check(&file, path, status, err);
    decant_mapped_file_close(&file);
    if (status != DECANT_OK)
        decant_token_array_free(array);
    return status;
}

void decant_token_array_free(decant_token_array *array)
{
    decant_memory_free(array->tokens);
    memset(array, 0, sizeof *array);
}
