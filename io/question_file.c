/* See question_file.h. Each line is parsed by itself; arrays grow by doubling. */
#include "io/question_file.h"

#include "base/memory.h"
#include "io/checksum.h"
#include "io/json.h"
#include "io/mapped_file.h"

#include <stdio.h>
#include <string.h>

typedef struct question_reader {
    decant_question_set *set;
    int64_t vocabulary_size;
    int64_t question_room, choice_room, token_room, subject_room;
    char origin[256]; /* "FILE, line N": for messages */
} question_reader;

static decant_status append_token(question_reader *reader, int32_t token, decant_error *err)
{
    decant_question_set *set = reader->set;
    decant_status status = decant_memory_grow(sizeof token, set->token_count, &reader->token_room, "questions",
                                              (void **)&set->tokens, err);
    if (status == DECANT_OK)
        set->tokens[set->token_count++] = token;
    return status;
}

static decant_status read_tokens(question_reader *reader, const cJSON *list, const char *what,
                                 decant_token_span *span, decant_error *err)
{
    const cJSON *element;
    decant_status status = DECANT_OK;
    *span = (decant_token_span){.first = reader->set->token_count};
    if (!cJSON_IsArray(list) || !list->child)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: %s is no list of at least one token id", reader->origin,
                    what);
    cJSON_ArrayForEach(element, list)
    {
        int64_t token;
        if (!decant_json_is_integer(element, 0, reader->vocabulary_size - 1, &token))
            DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: %s has a token outside the vocabulary of %lld",
                        reader->origin, what, (long long)reader->vocabulary_size);
        DECANT_TRY(append_token(reader, (int32_t)token, err));
        span->count++;
    }
done:
    return status;
}

static decant_status append_choice(question_reader *reader, const cJSON *list, const cJSON *length,
                                   decant_error *err)
{
    decant_question_set *set = reader->set;
    decant_status status;
    DECANT_TRY(decant_memory_grow(sizeof *set->choices, set->choice_count, &reader->choice_room, "questions",
                                  (void **)&set->choices, err));
    decant_question_choice *choice = &set->choices[set->choice_count];
    DECANT_TRY(read_tokens(reader, list, "a choice", &choice->tokens, err));
    choice->length = length ? length->valuedouble : (double)choice->tokens.count;
    if ((length && !cJSON_IsNumber(length)) || !(choice->length > 0 && choice->length < 1e9))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: a length is no number above zero", reader->origin);
    set->choice_count++;
done:
    return status;
}

static decant_status read_choices(question_reader *reader, const cJSON *object, decant_question *question,
                                  decant_error *err)
{
    const cJSON *choices, *lengths, *choice, *length;
    decant_status status;
    DECANT_TRY(decant_json_member(object, "choices", reader->origin, &choices, err));
    DECANT_TRY(decant_json_member(object, "lengths", reader->origin, &lengths, err));
    int count = cJSON_IsArray(choices) ? cJSON_GetArraySize(choices) : 0;
    if (count < 2 || count > DECANT_QUESTION_CHOICES_MAXIMUM)
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: \"choices\" is no list of 2 to %d choices", reader->origin,
                    DECANT_QUESTION_CHOICES_MAXIMUM);
    if (lengths && (!cJSON_IsArray(lengths) || cJSON_GetArraySize(lengths) != count))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: \"lengths\" is no list of %d numbers, one a choice",
                    reader->origin, count);
    question->first_choice = reader->set->choice_count;
    question->choices = count;
    length = lengths ? lengths->child : NULL;
    cJSON_ArrayForEach(choice, choices)
    {
        DECANT_TRY(append_choice(reader, choice, length, err));
        length = length ? length->next : NULL;
    }
done:
    return status;
}

/* A name that needs no escapes in JSON. */
static bool is_subject(const char *name)
{
    size_t length = name ? strlen(name) : 0;
    bool good = length > 0 && length < DECANT_SUBJECT_BYTES;
    for (size_t i = 0; good && i < length; i++)
        good = (unsigned char)name[i] >= ' ' && name[i] != '"' && name[i] != '\\' && name[i] != 0x7f;
    return good;
}

/* The subject's index; a new one is added. */
static decant_status find_subject(question_reader *reader, const cJSON *subject, int *index, decant_error *err)
{
    decant_question_set *set = reader->set;
    const char *name = subject ? cJSON_GetStringValue(subject) : "all";
    decant_status status = DECANT_OK;
    if (!is_subject(name))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: \"subject\" is no name of 1 to %d plain characters",
                    reader->origin, DECANT_SUBJECT_BYTES - 1);
    for (*index = 0; *index < set->subject_count; (*index)++)
        if (strcmp(set->subjects[*index], name) == 0)
            goto done;
    DECANT_TRY(decant_memory_grow(sizeof *set->subjects, set->subject_count, &reader->subject_room, "questions",
                                  (void **)&set->subjects, err));
    snprintf(set->subjects[set->subject_count++], DECANT_SUBJECT_BYTES, "%s", name);
done:
    return status;
}

static decant_status read_question(question_reader *reader, const cJSON *object, decant_question *question,
                                   decant_error *err)
{
    const cJSON *context, *answer, *subject;
    int64_t right;
    decant_status status;
    DECANT_TRY(decant_json_member(object, "context", reader->origin, &context, err));
    DECANT_TRY(decant_json_member(object, "answer", reader->origin, &answer, err));
    DECANT_TRY(decant_json_member(object, "subject", reader->origin, &subject, err));
    DECANT_TRY(find_subject(reader, subject, &question->subject, err));
    DECANT_TRY(read_tokens(reader, context, "\"context\"", &question->context, err));
    DECANT_TRY(read_choices(reader, object, question, err));
    if (!decant_json_is_integer(answer, 0, question->choices - 1, &right))
        DECANT_FAIL(err, DECANT_ERROR_INPUT, "%s: \"answer\" is no number from 0 to %d", reader->origin,
                    question->choices - 1);
    question->answer = (int)right;
done:
    return status;
}

static decant_status read_line(question_reader *reader, const char *line, size_t size_bytes, decant_error *err)
{
    decant_question_set *set = reader->set;
    cJSON *object = NULL;
    decant_status status;
    DECANT_TRY(decant_json_parse(line, size_bytes, reader->origin, &object, err));
    DECANT_TRY(decant_memory_grow(sizeof *set->questions, set->question_count, &reader->question_room,
                                  "questions", (void **)&set->questions, err));
    DECANT_TRY(read_question(reader, object, &set->questions[set->question_count], err));
    set->question_count++;
done:
    cJSON_Delete(object);
    return status;
}

static bool is_empty(const char *line, size_t size_bytes)
{
    for (size_t i = 0; i < size_bytes; i++)
        if (!strchr(" \t\r", line[i]) || !line[i])
            return false;
    return true;
}

/* A path that is too long for a message loses its beginning, not the line. */
static void name_line(question_reader *reader, const char *path, int64_t number)
{
    const size_t most = sizeof reader->origin - 32, length = strlen(path);
    snprintf(reader->origin, sizeof reader->origin, "%s%s, line %lld", length > most ? "..." : "",
             length > most ? path + length - most : path, (long long)number);
}

static decant_status read_lines(question_reader *reader, const char *path, const decant_mapped_file *file,
                                decant_error *err)
{
    size_t offset = 0;
    decant_status status = DECANT_OK;
    for (int64_t number = 1; offset < file->size_bytes && status == DECANT_OK; number++) {
        const char *at = (const char *)file->data + offset;
        const char *newline = memchr(at, '\n', file->size_bytes - offset);
        size_t size_bytes = newline ? (size_t)(newline - at) : file->size_bytes - offset;
        name_line(reader, path, number);
        if (!is_empty(at, size_bytes))
            status = read_line(reader, at, size_bytes, err);
        offset += size_bytes + 1;
    }
    if (status == DECANT_OK && reader->set->question_count == 0)
        return DECANT_ERROR(err, DECANT_ERROR_INPUT, "%s: has no question", path);
    return status;
}

decant_status decant_question_set_read(const char *path, int64_t vocabulary_size, decant_question_set *set,
                                       decant_error *err)
{
    decant_mapped_file file = {0};
    question_reader reader = {.set = set, .vocabulary_size = vocabulary_size};
    decant_status status;
    *set = (decant_question_set){0};
    DECANT_TRY(decant_mapped_file_open(path, &file, err));
    DECANT_TRY(read_lines(&reader, path, &file, err));
    set->checksum = decant_checksum(0, file.data, file.size_bytes);
done:
    status = decant_mapped_file_check(&file, path, status, err);
    decant_mapped_file_close(&file);
    if (status != DECANT_OK)
        decant_question_set_free(set);
    return status;
}

int64_t decant_question_set_longest(const decant_question_set *set)
{
    int64_t longest = 0;
    for (int64_t i = 0; i < set->question_count; i++)
        for (int choice = 0; choice < set->questions[i].choices; choice++) {
            const decant_question *question = &set->questions[i];
            int64_t length =
                question->context.count + set->choices[question->first_choice + choice].tokens.count;
            longest = length > longest ? length : longest;
        }
    return longest;
}

void decant_question_set_free(decant_question_set *set)
{
    decant_memory_free(set->questions);
    decant_memory_free(set->choices);
    decant_memory_free(set->tokens);
    decant_memory_free(set->subjects);
    *set = (decant_question_set){0};
}
