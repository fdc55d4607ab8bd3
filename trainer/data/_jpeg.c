/* Decoding the part of a JPEG that a crop needs, resized, by libjpeg-turbo. Optional: trainer/data/decode.py does
 * without it, and says what the functions mean.
 *
 * What is costly about a JPEG is done for the crop alone: rows above it are skipped, rows below it never read, and
 * columns beside it neither transformed nor converted to RGB. Rows are resized as they come, so that what they become
 * stays in the cache: across into a ring of as many rows as one row of the result is made of, then down into the result.
 *
 * Anything unusual is left to the caller by returning False or None: another colour space, damage of any kind, and
 * what libjpeg merely warns of. So there are no messages here, and one place where odd files are judged.
 *
 * The arithmetic is Pillow's: weights of 22 bits, and bytes between the two passes. Pillow goes down before across where
 * it finds that cheaper, here it is always across first; the order moves the rounding, by 1 of 255 at most.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000 /* 3.11, the first whose stable ABI has buffers */
#include <Python.h>

#include <limits.h>
#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION) || BITS_IN_JSAMPLE != 8
#error "needs libjpeg-turbo, which decodes parts of rows"
#endif

/* 32-bit products are slow in the instructions that every x86-64 has: two versions, chosen when this is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__)
#define FAST __attribute__((target_clones("avx2", "default")))
#else
#define FAST
#endif

#define PRECISION 22
#define HALF (1 << (PRECISION - 1))
#define MOST_PIXELS 89478485 /* beyond, Pillow warns of a decompression bomb, and beyond twice as many it refuses */
#define BLOCK 128            /* bytes that are resized down at once */
#define MOST_SIDE 65500      /* of an image or a result: JPEG_MAX_DIMENSION */

/* Which pixels make up each pixel of the result along one axis: `length` from `first`, times `weights`. */
struct window {
    int first, length;
    int32_t *weights;
};

struct filter {
    struct window *windows;
    int count;      /* pixels of the result */
    int most;       /* of all lengths */
    int begin, end; /* of all pixels that count */
};

struct job {
    struct jpeg_decompress_struct jpeg; /* its pool holds all memory, and is freed as a whole */
    struct jpeg_error_mgr errors;
    jmp_buf escape;
    Py_buffer data, out; /* no out: only the header is read */
    float left, top, right, bottom; /* in pixels of the source */
    int shrink, height, width, channels, flip;
};

/* ---- libjpeg's errors: any of them, and any warning, ends the job ---- */

static void leave(j_common_ptr jpeg) {
    longjmp(((struct job *)jpeg->client_data)->escape, 1);
}

static void leave_if_warned(j_common_ptr jpeg, int level) {
    if (level < 0)
        leave(jpeg);
}

static void keep_quiet(j_common_ptr jpeg) {
    (void)jpeg;
}

/* To be called behind setjmp, since creating can fail too. */
static void read_header(struct job *job) {
    job->jpeg.err = jpeg_std_error(&job->errors);
    job->errors.error_exit = leave;
    job->errors.emit_message = leave_if_warned;
    job->errors.output_message = keep_quiet;
    job->jpeg.client_data = job; /* jpeg_create_decompress keeps these two */
    jpeg_create_decompress(&job->jpeg);
    jpeg_mem_src(&job->jpeg, job->data.buf, (unsigned long)job->data.len);
    jpeg_read_header(&job->jpeg, TRUE);
}

static void *allocate(struct job *job, size_t bytes) {
    return job->jpeg.mem->alloc_large((j_common_ptr)&job->jpeg, JPOOL_IMAGE, bytes);
}

/* ---- resizing ---- */

/* The windows of a triangle filter over `size` pixels, of which [low, high) becomes `count`.
 *
 * When shrinking, the triangle is as much wider as the pixels of the result are. Sums over all windows stay below
 * 2 * size + 3 * count, so nothing here overflows for sides of at most MOST_SIDE. */
static void make_filter(struct job *job, struct filter *filter, int size, float low, float high, int count, int flip) {
    double scale = (double)(high - low) / count;
    double support = scale < 1 ? 1 : scale;
    size_t most = 2 * (size_t)ceil(support) + 1;
    int32_t *weights = allocate(job, most * (size_t)count * sizeof(int32_t));
    double *triangle = allocate(job, most * sizeof(double));

    memset(weights, 0, most * (size_t)count * sizeof(int32_t));
    filter->windows = allocate(job, (size_t)count * sizeof(struct window));
    filter->count = count;
    filter->most = 0;
    filter->begin = INT_MAX;
    filter->end = 0;
    for (int at = 0; at < count; at++, weights += most) {
        double centre = low + (at + 0.5) * scale;
        int first = (int)(centre - support + 0.5);
        int end = (int)(centre + support + 0.5);
        double total = 0;
        first = first < 0 ? 0 : first;
        end = end > size ? size : end;
        if (end <= first || (size_t)(end - first) > most) /* can't be; better no image than memory written over */
            leave((j_common_ptr)&job->jpeg);
        for (int tap = 0; tap < end - first; tap++) {
            double distance = fabs((tap + first - centre + 0.5) * (1 / support));
            triangle[tap] = distance < 1 ? 1 - distance : 0;
            total += triangle[tap];
        }
        for (int tap = 0; tap < end - first; tap++)
            weights[tap] = (int32_t)(0.5 + (total != 0 ? triangle[tap] / total : 0) * (1 << PRECISION));
        filter->windows[flip ? count - 1 - at : at] = (struct window){first, end - first, weights};
        filter->most = end - first > filter->most ? end - first : filter->most;
        filter->begin = first < filter->begin ? first : filter->begin;
        filter->end = end > filter->end ? end : filter->end;
    }
}

/* Compilers turn bytes into 32-bit numbers well for a whole row, and badly for a pixel: so `numbers` stand in between.
 * Behind the row they hold zeros, since all windows are taken to have the longest's length, which branches less. */
typedef int32_t pixel __attribute__((vector_size(16), aligned(4), may_alias));

static inline __attribute__((always_inline)) void weigh(const struct filter *filter, int taps, const pixel *numbers,
                                                        pixel *restrict sums) {
    for (int at = 0; at < filter->count; at++) {
        const pixel *from = numbers + filter->windows[at].first - filter->begin;
        const int32_t *weights = filter->windows[at].weights;
        pixel sum = {HALF, HALF, HALF, HALF};
        for (int tap = 0; tap < taps; tap++)
            sum += from[tap] * weights[tap];
        sums[at] = sum;
    }
}

/* One row of RGBX across; `columns` is how many count. */
FAST static void across_colour(const struct filter *filter, const uint8_t *restrict row, size_t columns,
                               int32_t *restrict numbers, int32_t *restrict sums, uint8_t *restrict result) {
    for (size_t at = 0; at < 4 * columns; at++)
        numbers[at] = row[at];
    switch (filter->most) { /* the usual numbers, unrolled */
    case 2: weigh(filter, 2, (const pixel *)numbers, (pixel *)sums); break;
    case 3: weigh(filter, 3, (const pixel *)numbers, (pixel *)sums); break;
    case 4: weigh(filter, 4, (const pixel *)numbers, (pixel *)sums); break;
    default: weigh(filter, filter->most, (const pixel *)numbers, (pixel *)sums);
    }
    for (int at = 0; at < 4 * filter->count; at++) {
        int32_t sum = sums[at] >> PRECISION;
        result[at] = (uint8_t)(sum > 255 ? 255 : sum);
    }
}

FAST static void across_grey(const struct filter *filter, const uint8_t *restrict row, uint8_t *restrict result) {
    for (int at = 0; at < filter->count; at++) {
        const struct window *window = &filter->windows[at];
        int32_t sum = HALF;
        for (int tap = 0; tap < window->length; tap++)
            sum += row[window->first - filter->begin + tap] * window->weights[tap];
        sum >>= PRECISION;
        result[at] = (uint8_t)(sum > 255 ? 255 : sum);
    }
}

static inline __attribute__((always_inline)) void add(int32_t *restrict sums, const uint8_t *restrict row,
                                                      int32_t weight) {
    for (int at = 0; at < BLOCK; at++)
        sums[at] += row[at] * weight;
}

/* One row of the result from the rows of its window, which lie in the ring by their number modulo `slots`; rows have
 * `stride` bytes, whole blocks. */
FAST static void down(const struct window *window, const uint8_t *restrict ring, size_t stride, int slots,
                      uint8_t *restrict result) {
    for (size_t from = 0; from < stride; from += BLOCK) {
        int32_t sums[BLOCK];
        for (int at = 0; at < BLOCK; at++)
            sums[at] = HALF;
        for (int tap = 0; tap < window->length; tap++)
            add(sums, ring + stride * (size_t)((window->first + tap) % slots) + from, window->weights[tap]);
        for (int at = 0; at < BLOCK; at++) {
            int32_t sum = sums[at] >> PRECISION;
            result[from + (size_t)at] = (uint8_t)(sum > 255 ? 255 : sum);
        }
    }
}

/* RGBX to RGB. */
static void pack(const uint8_t *restrict from, size_t pixels, uint8_t *restrict to) {
    for (; pixels > 1; pixels--, from += 4, to += 3)
        memcpy(to, from, 4); /* the fourth byte is written over */
    memcpy(to, from, 3);
}

/* ---- the crop ---- */

/* Tell whether the header is one of those this is for, and the box lies within the image. */
static int suits(const struct job *job) {
    const struct jpeg_decompress_struct *jpeg = &job->jpeg;
    return (jpeg->jpeg_color_space == JCS_GRAYSCALE || jpeg->jpeg_color_space == JCS_YCbCr ||
            jpeg->jpeg_color_space == JCS_RGB) &&
           (uint64_t)jpeg->image_width * jpeg->image_height <= MOST_PIXELS && job->left >= 0 && job->top >= 0 &&
           job->left < job->right && job->top < job->bottom && job->right <= jpeg->image_width &&
           job->bottom <= jpeg->image_height;
}

static void decode(struct job *job) {
    struct jpeg_decompress_struct *jpeg = &job->jpeg;
    int shrink = job->shrink, colour = job->channels == 3;
    struct filter across, along;

    jpeg->scale_num = 1;
    jpeg->scale_denom = (unsigned)shrink;
    jpeg->dct_method = JDCT_ISLOW;
    jpeg->out_color_space = colour ? JCS_EXT_RGBX : JCS_GRAYSCALE;
    jpeg_start_decompress(jpeg);

    make_filter(job, &across, (int)jpeg->output_width, job->left / shrink, job->right / shrink, job->width, job->flip);
    make_filter(job, &along, (int)jpeg->output_height, job->top / shrink, job->bottom / shrink, job->height, 0);

    /* Two columns more on either side, since the colour of a pixel is interpolated from its neighbours'. libjpeg moves
     * the beginning to the left, to where a block begins. */
    JDIMENSION begin = (JDIMENSION)(across.begin < 2 ? 0 : across.begin - 2);
    JDIMENSION end = (JDIMENSION)across.end + 2;
    end = end > jpeg->output_width ? jpeg->output_width : end;
    if (begin > 0 || end < jpeg->output_width) {
        JDIMENSION width = end - begin;
        jpeg_crop_scanline(jpeg, &begin, &width);
    }
    if (begin > (JDIMENSION)across.begin || begin + jpeg->output_width < (JDIMENSION)across.end)
        leave((j_common_ptr)jpeg);
    if (along.begin > 0 && jpeg_skip_scanlines(jpeg, (JDIMENSION)along.begin) != (JDIMENSION)along.begin)
        leave((j_common_ptr)jpeg);

    /* Pixels have 4 bytes in here, since vectors have as many lanes. */
    size_t depth = colour ? 4 : 1, columns = jpeg->output_width, width = (size_t)job->width;
    size_t stride = (width * depth + BLOCK - 1) / BLOCK * BLOCK;
    size_t slots = (size_t)along.most;
    uint8_t *ring = allocate(job, stride * slots);
    uint8_t *line = allocate(job, stride);
    int32_t *sums = allocate(job, stride * sizeof(int32_t));
    int32_t *numbers = allocate(job, (columns + (size_t)across.most) * depth * sizeof(int32_t));
    /* Off by 4 bytes: into aligned rows libjpeg-turbo writes around the cache, and reading them back was slower than
     * anything else here. */
    JSAMPROW row = (JSAMPROW)allocate(job, columns * depth + 4) + 4;
    memset(ring, 0, stride * slots);
    memset(numbers, 0, (columns + (size_t)across.most) * depth * sizeof(int32_t));

    const uint8_t *needed = row + ((size_t)across.begin - begin) * depth;
    uint8_t *result = job->out.buf;
    int next = along.begin; /* the row that is read next */
    for (int at = 0; at < job->height; at++) {
        const struct window *window = &along.windows[at];
        for (; next < window->first + window->length; next++) {
            uint8_t *slot = ring + stride * ((size_t)next % slots);
            if (jpeg_read_scanlines(jpeg, &row, 1) != 1)
                leave((j_common_ptr)jpeg);
            if (colour)
                across_colour(&across, needed, (size_t)(across.end - across.begin), numbers, sums, slot);
            else
                across_grey(&across, needed, slot);
        }
        down(window, ring, stride, along.most, line);
        if (colour)
            pack(line, width, result);
        else
            memcpy(result, line, width);
        result += width * (size_t)job->channels;
    }
}

/* Everything that libjpeg may break off. Variables that change lie in the job, the caller's, as setjmp demands. */
static int run(struct job *job) {
    if (setjmp(job->escape))
        return 0;
    read_header(job);
    if (job->out.buf == NULL)
        return 1;
    if (!suits(job))
        return 0;
    decode(job);
    return 1;
}

/* ---- Python ---- */

static PyObject *py_decode_crop(PyObject *module, PyObject *args) {
    struct job job;
    int done = 0;
    (void)module;
    memset(&job, 0, sizeof job);
    if (!PyArg_ParseTuple(args, "y*(ffff)iw*(iii)p", &job.data, &job.left, &job.top, &job.right, &job.bottom,
                          &job.shrink, &job.out, &job.height, &job.width, &job.channels, &job.flip))
        return NULL;
    if (job.height < 1 || job.width < 1 || job.height > MOST_SIDE || job.width > MOST_SIDE) {
        done = 0;
    } else if ((job.shrink != 1 && job.shrink != 2 && job.shrink != 4 && job.shrink != 8) ||
               (job.channels != 1 && job.channels != 3) ||
               (int64_t)job.out.len != (int64_t)job.height * job.width * job.channels) {
        PyErr_SetString(PyExc_ValueError, "out is not what its shape says");
        done = -1;
    } else {
        Py_BEGIN_ALLOW_THREADS
        done = run(&job);
        jpeg_destroy_decompress(&job.jpeg);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&job.data);
    PyBuffer_Release(&job.out);
    return done < 0 ? NULL : PyBool_FromLong(done);
}

static PyObject *py_size_of(PyObject *module, PyObject *args) {
    struct job job;
    PyObject *size = NULL;
    (void)module;
    memset(&job, 0, sizeof job);
    if (!PyArg_ParseTuple(args, "y*", &job.data))
        return NULL;
    size = run(&job) ? Py_BuildValue("(II)", job.jpeg.image_height, job.jpeg.image_width) : Py_NewRef(Py_None);
    jpeg_destroy_decompress(&job.jpeg);
    PyBuffer_Release(&job.data);
    return size;
}

static PyMethodDef methods[] = {
    {"decode_crop", py_decode_crop, METH_VARARGS,
     "decode_crop(data, box, shrink, out, shape, flip) -> bool: whether out was filled."},
    {"size_of", py_size_of, METH_VARARGS, "size_of(data) -> (height, width), or None."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_jpeg", .m_size = 0, .m_methods = methods};

PyMODINIT_FUNC PyInit__jpeg(void) {
    return PyModuleDef_Init(&definition);
}
