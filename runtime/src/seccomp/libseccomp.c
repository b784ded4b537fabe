/* For the differential test only: what does libseccomp make of a profile?
 *
 * Reads profiles as lines of text, writes programs as binary. Declares what it uses itself, so that no development
 * package has to be installed.
 *
 *     filter DEFAULT OPTIMIZE ARCHITECTURE...    a new filter for these architectures
 *     rule ACTION NAME COUNT (INDEX OP A B)...   writes an int: 0, 1 for a name it does not know, or an errno below 0
 *     number ARCHITECTURE NAME                   writes an int: the number of a call
 *     end                                        writes an unsigned: bytes of the program, then the program
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct scmp_arg_cmp { unsigned int arg; int op; uint64_t a, b; };

void *seccomp_init(uint32_t);
void seccomp_release(void *);
int seccomp_arch_add(void *, uint32_t);
int seccomp_arch_remove(void *, uint32_t);
uint32_t seccomp_arch_native(void);
uint32_t seccomp_arch_resolve_name(const char *);
int seccomp_syscall_resolve_name(const char *);
int seccomp_syscall_resolve_name_arch(uint32_t, const char *);
int seccomp_rule_add_array(void *, uint32_t, int, unsigned int, const struct scmp_arg_cmp *);
int seccomp_attr_set(void *, int, uint32_t);
int seccomp_export_bpf(void *, int);

static void put(const void *data, size_t size) {
    if (fwrite(data, 1, size, stdout) != size) exit(1);
}

int main(void) {
    static char line[4096];
    void *context = NULL;
    while (fgets(line, sizeof line, stdin)) {
        char *word = strtok(line, " \n");
        if (!strcmp(word, "filter")) {
            uint32_t action = strtoul(strtok(NULL, " \n"), NULL, 0);
            int optimize = atoi(strtok(NULL, " \n"));
            if (context) seccomp_release(context);
            context = seccomp_init(action);
            seccomp_attr_set(context, 8, optimize);
            seccomp_arch_remove(context, seccomp_arch_native());
            while ((word = strtok(NULL, " \n"))) {
                int failed = seccomp_arch_add(context, seccomp_arch_resolve_name(word));
                if (failed) { fprintf(stderr, "%s: %d\n", word, failed); return 1; }
            }
        } else if (!strcmp(word, "rule")) {
            struct scmp_arg_cmp args[6];
            uint32_t action = strtoul(strtok(NULL, " \n"), NULL, 0);
            int number = seccomp_syscall_resolve_name(strtok(NULL, " \n")), result = 1;
            unsigned int count = atoi(strtok(NULL, " \n"));
            for (unsigned int i = 0; i < count; i++) {
                args[i].arg = atoi(strtok(NULL, " \n"));
                args[i].op = atoi(strtok(NULL, " \n"));
                args[i].a = strtoull(strtok(NULL, " \n"), NULL, 0);
                args[i].b = strtoull(strtok(NULL, " \n"), NULL, 0);
            }
            if (number != -1) result = seccomp_rule_add_array(context, action, number, count, args);
            put(&result, sizeof result);
        } else if (!strcmp(word, "number")) {
            uint32_t architecture = seccomp_arch_resolve_name(strtok(NULL, " \n"));
            int number = -1; /* also for an architecture it does not know, where it would take the native one */
            if (architecture) number = seccomp_syscall_resolve_name_arch(architecture, strtok(NULL, " \n"));
            put(&number, sizeof number);
        } else {
            int file = memfd_create("bpf", 0), failed = seccomp_export_bpf(context, file);
            if (failed) { fprintf(stderr, "export: %d\n", failed); return 1; }
            uint32_t size = lseek(file, 0, SEEK_END);
            void *program = malloc(size);
            if (pread(file, program, size, 0) != (ssize_t)size) return 1;
            close(file);
            put(&size, sizeof size);
            put(program, size);
            free(program);
        }
        fflush(stdout);
    }
    return 0;
}
