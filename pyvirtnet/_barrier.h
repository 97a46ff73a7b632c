/* The only fences, atomics and volatile accesses of the driver. */
#ifndef PYVIRTNET_BARRIER_H
#define PYVIRTNET_BARRIER_H

#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* Reading an index that the device publishes: what it wrote before is visible after (2.7.14). */
static inline uint16_t vn_observe(const uint16_t *index)
{
    return __atomic_load_n(index, __ATOMIC_ACQUIRE);
}

/* Publishing an index: what we wrote before is visible to the device first (2.7.13.3). */
static inline void vn_publish(uint16_t *index, uint16_t value)
{
    __atomic_store_n(index, value, __ATOMIC_RELEASE);
}

/* A packed descriptor: what the device wrote before it marked it used is visible after (2.8.21). */
static inline uint64_t vn_observe64(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* Marking a packed descriptor available: all descriptors behind it are visible first (2.8.20.1). */
static inline void vn_publish64(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static inline void vn_poke64(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

static inline uint32_t vn_peek32(const uint32_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static inline void vn_poke32(uint32_t *word, uint32_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/* Between publishing our index and reading the device's wish for kicks, and the other way
 * round for interrupts: store then load, so nothing less than a full fence (2.7.13.4.1). */
static inline void vn_full_fence(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline uint16_t vn_peek(const uint16_t *word)
{
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static inline void vn_poke(uint16_t *word, uint16_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/* A used element is read once, so that what was checked is what is used. */
static inline uint64_t vn_read_once(const void *element)
{
    return __atomic_load_n((const uint64_t *)element, __ATOMIC_RELAXED);
}

/* Whoever brings a count to 0 frees what it counts. */
static inline uint32_t vn_drop(uint32_t *count, uint32_t by)
{
    return __atomic_sub_fetch(count, by, __ATOMIC_ACQ_REL);
}

static inline void vn_hold(uint32_t *count, uint32_t by)
{
    __atomic_add_fetch(count, by, __ATOMIC_RELAXED);
}

/* One thread at a time in one direction of a queue: 1 if we are in. */
static inline int vn_enter(uint8_t *busy)
{
    return !__atomic_exchange_n(busy, 1, __ATOMIC_ACQUIRE);
}

static inline void vn_leave(uint8_t *busy)
{
    __atomic_store_n(busy, 0, __ATOMIC_RELEASE);
}

static inline void vn_lock(uint8_t *lock)
{
    while (__atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE))
        while (__atomic_load_n(lock, __ATOMIC_RELAXED))
            ;
}

static inline int vn_locked(const uint8_t *lock)
{
    return __atomic_load_n(lock, __ATOMIC_RELAXED);
}

static inline void vn_unlock(uint8_t *lock)
{
    __atomic_store_n(lock, 0, __ATOMIC_RELEASE);
}

static inline void vn_prefetch(const void *address)
{
    __builtin_prefetch(address);
}

/* 4.1.5.2: a notification is a 16-bit store. */
static inline void vn_mmio_store16(uint64_t address, uint16_t value)
{
    __atomic_thread_fence(__ATOMIC_RELEASE);
    *(volatile uint16_t *)(uintptr_t)address = value;
}

/* 4.1.5.2: with NOTIFICATION_DATA it is a 32-bit store. */
static inline void vn_mmio_store32(uint64_t address, uint32_t value)
{
    __atomic_thread_fence(__ATOMIC_RELEASE);
    *(volatile uint32_t *)(uintptr_t)address = value;
}

/* A back end shares the file and can make it block. Full: the device has kicks enough. */
static inline void vn_eventfd_add(int fd)
{
    uint64_t one = 1;
    struct pollfd room = {.fd = fd, .events = POLLOUT};
    if (poll(&room, 1, 0) == 1 && room.revents & POLLOUT) {
        ssize_t written = write(fd, &one, sizeof one);
        (void)written;
    }
}

/* The linear head: whole cache lines, a constant size each, so the compiler uses vectors. */
static inline void vn_copy_head(uint8_t *to, const uint8_t *from, uint32_t length)
{
    if (length <= 64)
        memcpy(to, from, 64);
    else
        memcpy(to, from, 128);
}

#endif
