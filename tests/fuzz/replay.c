/* Runs a fuzz target over the files of a corpus, one after the other: how the tests replay what fuzzing found.
 */
#include "tests/fuzz/input_file.h"

#include <dirent.h>
#include <string.h>

static int replay(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (!file)
        return -1;
    static uint8_t data[1 << 20];
    size_t size_bytes = fread(data, 1, sizeof data, file);
    fclose(file);
    LLVMFuzzerTestOneInput(data, size_bytes);
    return 0;
}

int main(int count, char **arguments)
{
    struct dirent *entry;
    int replayed = 0;
    DIR *folder = count == 2 ? opendir(arguments[1]) : NULL;
    if (!folder) {
        fprintf(stderr, "usage: %s FOLDER\n", arguments[0]);
        return 2;
    }
    while ((entry = readdir(folder))) {
        char path[4096];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "%s/%s", arguments[1], entry->d_name);
        if (replay(path) != 0) {
            perror(path);
            return 1;
        }
        replayed++;
    }
    closedir(folder);
    printf("%d inputs replayed\n", replayed);
    return replayed == 0;
}
