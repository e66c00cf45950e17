/* The same yardstick as loop.py, in C: a bare loop of non-blocking send on all sockets. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST 65536
#define ROOM (1 << 20)

static const char HEAD[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";

static int subscribers[MOST], count;
static int place[MOST]; /* index of a descriptor in subscribers, or -1 */
static int publisher = -1;
static char waiting[ROOM];
static size_t held;

static void fan_out(void) {
    size_t at = 0;
    uint32_t size;

    while (held - at >= 4) {
        memcpy(&size, waiting + at, 4);
        size = ntohl(size);
        if (held - at < 4 + (size_t)size)
            break;
        for (int n = 0; n < count; n++)
            send(subscribers[n], waiting + at + 4, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        at += 4 + size;
    }
    memmove(waiting, waiting + at, held - at);
    held -= at;
}

static void leave(int descriptor) {
    if (place[descriptor] >= 0) {
        int last = subscribers[--count];
        subscribers[place[descriptor]] = last;
        place[last] = place[descriptor];
        place[descriptor] = -1;
    }
    if (descriptor == publisher) {
        publisher = -1;
        held = 0;
    }
    close(descriptor);
}

static void readable(int descriptor) {
    if (descriptor == publisher) {
        ssize_t size = recv(descriptor, waiting + held, ROOM - held, 0);
        if (size <= 0) {
            leave(descriptor);
            return;
        }
        held += size;
        fan_out();
        return;
    }
    char request[4096];
    ssize_t size = recv(descriptor, request, sizeof request, 0);
    if (size > 4 && !memcmp(request, "GET ", 4)) {
        send(descriptor, HEAD, sizeof HEAD - 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        place[descriptor] = count;
        subscribers[count++] = descriptor;
    } else if (size >= 5 && !memcmp(request, "PUB \n", 5)) {
        publisher = descriptor;
        held = size - 5;
        memcpy(waiting, request + 5, held);
        fan_out();
    } else {
        leave(descriptor);
    }
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    struct rlimit limit;
    struct epoll_event event = {.events = EPOLLIN}, events[1024];
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), epoll = epoll_create1(0);

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max < MOST ? limit.rlim_max : MOST;
    setrlimit(RLIMIT_NOFILE, &limit);
    memset(place, -1, sizeof place);
    if (bind(listener, (struct sockaddr *)&address, length) || listen(listener, 4096))
        return 1;
    getsockname(listener, (struct sockaddr *)&address, &length);
    event.data.fd = listener;
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = 0;
    epoll_ctl(epoll, EPOLL_CTL_ADD, 0, &event);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll, events, 1024, -1);
        for (int n = 0; n < ready; n++) {
            int descriptor = events[n].data.fd;
            if (descriptor == 0)
                return 0; /* stdin has ended */
            if (descriptor != listener) {
                readable(descriptor);
            } else if ((descriptor = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                event.data.fd = descriptor;
                epoll_ctl(epoll, EPOLL_CTL_ADD, descriptor, &event);
            }
        }
    }
}
