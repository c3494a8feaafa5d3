/* xxh3_64, after the public specification (doc/xxhash_spec.md of the xxHash project, XXH3 of 64 bits). */

#include "core.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define P32_1 0x9E3779B1u
#define P32_2 0x85EBCA77u
#define P32_3 0xC2B2AE3Du
#define P64_1 0x9E3779B185EBCA87u
#define P64_2 0xC2B2AE3D27D4EB4Fu
#define P64_3 0x165667B19E3779F9u
#define P64_4 0x85EBCA77C2B2AE63u
#define P64_5 0x27D4EB2F165667C5u
#define MX_1 0x165667919E3779F9u
#define MX_2 0x9FB21C651E98DF25u

#define STRIPE 64
#define SECRET 192
#define STRIPES_PER_BLOCK ((SECRET - STRIPE) / 8)

static const uint8_t default_secret[SECRET] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4, 0x6d, 0xe9,
    0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78,
    0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6,
    0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f,
    0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31,
    0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff,
    0xfa, 0x13, 0x63, 0xeb, 0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f,
    0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static inline uint64_t u64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, 8);
    return value;
}

static inline uint32_t u32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}

static inline uint64_t rotated(uint64_t value, int bits)
{
    return value << bits | value >> (64 - bits);
}

static inline uint64_t folded(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t avalanche(uint64_t hash)
{
    hash ^= hash >> 37;
    hash *= MX_1;
    return hash ^ hash >> 32;
}

static inline uint64_t avalanche_64(uint64_t hash) /* of XXH64 */
{
    hash ^= hash >> 33;
    hash *= P64_2;
    hash ^= hash >> 29;
    hash *= P64_3;
    return hash ^ hash >> 32;
}

static inline uint64_t mixed_16(const uint8_t *data, const uint8_t *secret, uint64_t seed)
{
    return folded(u64(data) ^ (u64(secret) + seed), u64(data + 8) ^ (u64(secret + 8) - seed));
}

static uint64_t up_to_16(const uint8_t *data, size_t length, uint64_t seed)
{
    const uint8_t *secret = default_secret;
    if (length > 8) {
        uint64_t low = u64(data) ^ ((u64(secret + 24) ^ u64(secret + 32)) + seed);
        uint64_t high = u64(data + length - 8) ^ ((u64(secret + 40) ^ u64(secret + 48)) - seed);
        return avalanche(length + __builtin_bswap64(low) + high + folded(low, high));
    }
    if (length >= 4) {
        seed ^= (uint64_t)__builtin_bswap32((uint32_t)seed) << 32;
        uint64_t both = u32(data + length - 4) + ((uint64_t)u32(data) << 32);
        uint64_t hash = both ^ ((u64(secret + 8) ^ u64(secret + 16)) - seed);
        hash ^= rotated(hash, 49) ^ rotated(hash, 24);
        hash *= MX_2;
        hash ^= (hash >> 35) + length;
        hash *= MX_2;
        return hash ^ hash >> 28;
    }
    if (length > 0) {
        uint32_t all = (uint32_t)data[0] << 16 | (uint32_t)data[length >> 1] << 24 | data[length - 1] | (uint32_t)length << 8;
        return avalanche_64(all ^ ((uint64_t)(u32(secret) ^ u32(secret + 4)) + seed));
    }
    return avalanche_64(seed ^ u64(secret + 56) ^ u64(secret + 64));
}

static uint64_t up_to_128(const uint8_t *data, size_t length, uint64_t seed)
{
    uint64_t hash = length * P64_1;
    for (size_t i = (length - 1) / 32 + 1; i-- > 0;) {
        hash += mixed_16(data + 16 * i, default_secret + 32 * i, seed);
        hash += mixed_16(data + length - 16 * (i + 1), default_secret + 32 * i + 16, seed);
    }
    return avalanche(hash);
}

static uint64_t up_to_240(const uint8_t *data, size_t length, uint64_t seed)
{
    uint64_t hash = length * P64_1;
    for (size_t i = 0; i < 8; i++)
        hash += mixed_16(data + 16 * i, default_secret + 16 * i, seed);
    hash = avalanche(hash);
    for (size_t i = 8; i < length / 16; i++)
        hash += mixed_16(data + 16 * i, default_secret + 16 * (i - 8) + 3, seed);
    hash += mixed_16(data + length - 16, default_secret + 136 - 17, seed);
    return avalanche(hash);
}

#if defined(__SSE2__)
static inline void add_stripe(uint64_t *lanes, const uint8_t *data, const uint8_t *secret)
{
    for (int i = 0; i < 4; i++) {
        __m128i lane = _mm_loadu_si128((const __m128i *)lanes + i);
        __m128i value = _mm_loadu_si128((const __m128i *)data + i);
        __m128i keyed = _mm_xor_si128(value, _mm_loadu_si128((const __m128i *)secret + i));
        __m128i product = _mm_mul_epu32(keyed, _mm_shuffle_epi32(keyed, _MM_SHUFFLE(0, 3, 0, 1)));
        lane = _mm_add_epi64(lane, _mm_shuffle_epi32(value, _MM_SHUFFLE(1, 0, 3, 2)));
        _mm_storeu_si128((__m128i *)lanes + i, _mm_add_epi64(lane, product));
    }
}
#else
static inline void add_stripe(uint64_t *lanes, const uint8_t *data, const uint8_t *secret)
{
    for (int i = 0; i < 8; i++) {
        uint64_t value = u64(data + 8 * i), keyed = value ^ u64(secret + 8 * i);
        lanes[i ^ 1] += value;
        lanes[i] += (keyed & 0xFFFFFFFFu) * (keyed >> 32);
    }
}
#endif

static void scramble(uint64_t *lanes, const uint8_t *secret)
{
    for (int i = 0; i < 8; i++)
        lanes[i] = (lanes[i] ^ lanes[i] >> 47 ^ u64(secret + 8 * i)) * P32_1;
}

static uint64_t longer(const uint8_t *data, size_t length, uint64_t seed)
{
    uint64_t lanes[8] = {P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1};
    uint8_t derived[SECRET];
    const uint8_t *secret = default_secret;
    if (seed != 0) {
        for (size_t i = 0; i < SECRET; i += 16) {
            uint64_t low = u64(default_secret + i) + seed, high = u64(default_secret + i + 8) - seed;
            memcpy(derived + i, &low, 8);
            memcpy(derived + i + 8, &high, 8);
        }
        secret = derived;
    }
    size_t stripes = (length - 1) / STRIPE, i = 0;
    for (; i < stripes; i++) {
        size_t place = i % STRIPES_PER_BLOCK;
        add_stripe(lanes, data + STRIPE * i, secret + 8 * place);
        if (place == STRIPES_PER_BLOCK - 1)
            scramble(lanes, secret + SECRET - STRIPE);
    }
    add_stripe(lanes, data + length - STRIPE, secret + SECRET - STRIPE - 7);
    uint64_t hash = length * P64_1;
    for (i = 0; i < 4; i++)
        hash += folded(lanes[2 * i] ^ u64(secret + 11 + 16 * i), lanes[2 * i + 1] ^ u64(secret + 19 + 16 * i));
    return avalanche(hash);
}

uint64_t xxh3_64(const uint8_t *data, size_t length, uint64_t seed)
{
    if (length <= 16)
        return up_to_16(data, length, seed);
    if (length <= 128)
        return up_to_128(data, length, seed);
    return length <= 240 ? up_to_240(data, length, seed) : longer(data, length, seed);
}

uint64_t hash_of(const uint8_t *data, size_t length)
{
    if (core.hash == NULL || core.hash == Py_None)
        return xxh3_64(data, length, 0);
    PyObject *raw = PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)length), *hash = NULL;
    if (raw != NULL)
        hash = PyObject_CallFunctionObjArgs(core.hash, raw, NULL);
    uint64_t found = hash == NULL ? 0 : PyLong_AsUnsignedLongLong(hash);
    PyErr_Clear();
    Py_XDECREF(raw);
    Py_XDECREF(hash);
    return found;
}
