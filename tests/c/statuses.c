/* What calls of the C ABI come to that need no GPU, or come to the same with one. Exits with 1 at the first that is not as documented. */
#include <paf.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The text of the last failure has `part` in it. */
static void expect_text(const void *handle, const char *part) {
    char text[512];
    size_t needed = paf_last_error(handle, text, sizeof text);
    if (strstr(text, part) == NULL) {
        fprintf(stderr, "\"%s\" is missing in: %s\n", part, text);
        exit(1);
    }
    if (needed != strlen(text) + 1 || paf_last_error(handle, NULL, 0) != needed) {
        fprintf(stderr, "%zu bytes, expected %zu, for: %s\n", needed, strlen(text) + 1, text);
        exit(1);
    }
}

static void expect(const char *call, PafStatus got, PafStatus expected) {
    if (got != expected) {
        char text[512];
        paf_last_error(NULL, text, sizeof text);
        fprintf(stderr, "%s: status %d, expected %d; last error: %s\n", call, (int)got, (int)expected, text);
        exit(1);
    }
}

#define EXPECT(call, expected) expect(#call, (call), (expected))

/* With a device: what is refused before anything is launched. */
static void with_device(PafDevice *device) {
    PafEncoder *encoder = (PafEncoder *)(void *)&device;
    PafEncoderConfig config = {.struct_size = sizeof config};
    EXPECT(paf_encoder_create(device, NULL, NULL, &encoder), PAF_STATUS_INVALID_ARGUMENT);
    expect_text(device, "PafEncoderConfig");
    if (encoder != NULL) {
        fprintf(stderr, "a call that failed wrote a handle\n");
        exit(1);
    }
    EXPECT(paf_encoder_create(device, &config, NULL, &encoder), PAF_STATUS_INVALID_ARGUMENT);
    expect_text(device, "activation is 0");
    EXPECT(paf_device_prepare(device, PAF_DTYPE_F32), PAF_STATUS_INVALID_ARGUMENT);
    EXPECT(paf_device_prepare(device, PAF_DTYPE_BF16), PAF_STATUS_OK);
    EXPECT(paf_device_synchronize(device), PAF_STATUS_OK);
    EXPECT(paf_gemm(device, NULL), PAF_STATUS_INVALID_ARGUMENT);
    expect_text(device, "PafGemm");
    /* A handle of one kind is none of another. */
    EXPECT(paf_encoder_destroy((PafEncoder *)(void *)device), PAF_STATUS_INVALID_HANDLE);
    EXPECT(paf_device_destroy(device), PAF_STATUS_OK);
    EXPECT(paf_device_synchronize(device), PAF_STATUS_INVALID_HANDLE);
    EXPECT(paf_device_destroy(device), PAF_STATUS_INVALID_HANDLE);
}

int main(void) {
    PafDevice *device = (PafDevice *)(void *)&device;
    PafEncoder *encoder = NULL;
    size_t bytes = 1;
    PafForward call = {.struct_size = sizeof call};

    if (paf_abi_version() != PAF_ABI_VERSION || strchr(paf_version(), '.') == NULL) {
        fprintf(stderr, "ABI %u, version %s\n", paf_abi_version(), paf_version());
        return 1;
    }
    if (paf_last_error(NULL, NULL, 0) != 1) {
        fprintf(stderr, "there is an error before there was a call\n");
        return 1;
    }

    EXPECT(paf_device_open(0, NULL), PAF_STATUS_INVALID_ARGUMENT);
    expect_text(NULL, "device is");
    EXPECT(paf_device_synchronize(NULL), PAF_STATUS_INVALID_HANDLE);
    EXPECT(paf_device_synchronize((PafDevice *)(void *)&device), PAF_STATUS_INVALID_HANDLE);
    EXPECT(paf_encoder_forward(encoder, &call), PAF_STATUS_INVALID_HANDLE);
    EXPECT(paf_encoder_workspace_bytes(encoder, 1, &bytes), PAF_STATUS_INVALID_HANDLE);
    EXPECT(paf_encoder_clone(encoder, &encoder), PAF_STATUS_INVALID_HANDLE);
    EXPECT(paf_encoder_set_plan(encoder, "fused"), PAF_STATUS_INVALID_HANDLE);
    expect_text(NULL, "no handle of this kind");
    EXPECT(paf_device_destroy(NULL), PAF_STATUS_OK);
    EXPECT(paf_encoder_destroy(NULL), PAF_STATUS_OK);

    PafStatus opened = paf_device_open(0, &device);
    if (opened == PAF_STATUS_OK) {
        EXPECT(paf_device_from_context(NULL, &(PafDevice *){NULL}), PAF_STATUS_INVALID_ARGUMENT);
        with_device(device);
        EXPECT(paf_device_open(4096, &device), PAF_STATUS_NO_DEVICE);
        expect_text(NULL, "4096");
    } else {
        if (opened != PAF_STATUS_NO_DRIVER) {
            expect("paf_device_open(0, &device)", opened, PAF_STATUS_NO_DEVICE);
        }
        expect_text(NULL, opened == PAF_STATUS_NO_DRIVER ? "libcuda.so" : "no CUDA device");
        if (device != NULL) {
            fprintf(stderr, "a call that failed wrote a handle\n");
            return 1;
        }
        EXPECT(paf_device_from_context(NULL, &device), opened == PAF_STATUS_NO_DRIVER ? opened : PAF_STATUS_INVALID_ARGUMENT);
    }
    printf("all statuses are as documented; paf_device_open came to %d\n", (int)opened);
    return 0;
}
