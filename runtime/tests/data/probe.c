/* Makes system calls that its arguments name, "NUMBER[,ARGUMENT...]" or "x86:NUMBER[,...]" for the 32-bit entry, and
 * prints for each the error number, or 0. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **list) {
    for (int i = 1; i < count; i++) {
        unsigned long a[7] = {0};
        char *at = list[i];
        int narrow = !strncmp(at, "x86:", 4);
        if (narrow) at += 4;
        for (int n = 0; n < 7; n++) {
            a[n] = strtoul(at, &at, 0);
            if (*at++ != ',') break;
        }
        long result;
        if (narrow) {
#ifdef __x86_64__
            int low;
            __asm__ volatile("int $0x80" : "=a"(low)
                             : "a"((int)a[0]), "b"((int)a[1]), "c"((int)a[2]), "d"((int)a[3])
                             : "memory", "r8", "r9", "r10", "r11");
            result = low < 0 ? -low : 0;
#else
            result = -1;
#endif
        } else {
            result = syscall(a[0], a[1], a[2], a[3], a[4], a[5], a[6]) == -1 ? errno : 0;
        }
        printf("%s=%ld\n", list[i], result);
    }
    return 0;
}
