"""A program that starts as a model server does: reads all of its files, then answers 200.

``start PORT PATH…`` reads everything below the paths in the order of names, a mebibyte at a time,
and then serves ``/healthz`` on a port of 127.0.0.1; what it says there are the number of bytes and
the sum of their words, so that whoever asks knows that it has read the right ones. With the port 0
it prints that and ends; with ``-`` for a port it adds nothing up, and reading is all that it does.
"""

from pathlib import Path

from tests.parts.processes import run

_SOURCE = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PIECE = 1 << 20 };
static uint64_t piece[PIECE / 8], total, sum;
static int adding = 1;

static void fail(const char *what) { perror(what); exit(1); }

static void read_file(const char *path) {
    int file = open(path, O_RDONLY);
    if (file < 0) fail(path);
    ssize_t got;
    while ((got = read(file, piece, PIECE)) > 0) {
        memset((char *)piece + got, 0, -got & 7);
        for (ssize_t i = 0; adding && i < (got + 7) / 8; i++) sum += piece[i];
        total += got;
    }
    if (got < 0) fail(path);
    close(file);
}

static void read_below(const char *path) {
    struct stat status;
    if (lstat(path, &status)) fail(path);
    if (S_ISREG(status.st_mode)) read_file(path);
    if (!S_ISDIR(status.st_mode)) return;
    struct dirent **names;
    int count = scandir(path, &names, NULL, alphasort);
    if (count < 0) fail(path);
    for (int i = 0; i < count; i++) {
        const char *name = names[i]->d_name;
        if (strcmp(name, ".") && strcmp(name, "..")) {
            char *below;
            if (asprintf(&below, "%s/%s", path, name) < 0) fail(path);
            read_below(below);
            free(below);
        }
        free(names[i]);
    }
    free(names);
}

int main(int count, char **words) {
    char said[64], answer[256], request[4096];
    signal(SIGPIPE, SIG_IGN);
    adding = count < 2 || words[1][0] != '-';
    for (int i = 2; i < count; i++) read_below(words[i]);
    snprintf(said, sizeof said, "%llu %llu\n", (unsigned long long)total, (unsigned long long)sum);
    int port = count > 1 ? atoi(words[1]) : 0;
    if (!port) return fputs(said, stdout) < 0;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address)) fail("bind");
    if (listen(listener, 16)) fail("listen");
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) continue;
        ssize_t got = read(client, request, sizeof request);
        int found = got > 12 && !memcmp(request, "GET /healthz", 12);
        const char *status = found ? "200 OK" : "404 Not Found";
        int size = snprintf(answer, sizeof answer,
            "HTTP/1.1 %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
            status, strlen(said), said);
        if (write(client, answer, size) != size) perror("write");
        close(client);
    }
}
"""


def compiled(directory: Path) -> Path:
    """The program, linked statically. Raises ProgramMissing, ProcessFailed."""
    source, program = directory / "start.c", directory / "start"
    source.write_text(_SOURCE)
    run(["gcc", "-static", "-O2", "-s", "-o", program, source])
    return program
