/* What runs in the bench's containers.
 *
 * usage: program              does nothing
 *        program pause        waits for a signal
 *        program write BYTES LINE   writes that much in lines of LINE bytes, as fast as it can
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char block[1 << 20];

int main(int count, char **arguments) {
    if (count == 2 && !strcmp(arguments[1], "pause")) return pause();
    if (count == 4 && !strcmp(arguments[1], "write")) {
        long left = atol(arguments[2]), line = atol(arguments[3]);
        size_t whole = sizeof block / line * line;
        memset(block, 'x', whole);
        for (size_t at = line - 1; at < whole; at += line) block[at] = '\n';
        while (left > 0) {
            /* Whole lines, so that every block is the same. */
            size_t want = (size_t)left < whole ? (size_t)left / line * line : whole;
            if (want == 0) break;
            for (size_t at = 0; at < want;) {
                ssize_t done = write(1, block + at, want - at);
                if (done < 0) return 1;
                at += done;
            }
            left -= want;
        }
    }
    return 0;
}
