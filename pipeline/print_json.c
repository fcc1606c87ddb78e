/* See print_json.h. */
#include "pipeline/print_json.h"

decant_status decant_print_json(cJSON *value, FILE *stream, decant_error *err)
{
    char *text = cJSON_Print(value);
    cJSON_Delete(value);
    if (!text)
        return DECANT_ERROR(err, DECANT_ERROR_MEMORY, "no memory for the results as JSON");
    fprintf(stream, "%s\n", text);
    cJSON_free(text);
    return DECANT_OK;
}
