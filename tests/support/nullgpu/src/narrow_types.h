// CUDA's headers of 16-bit and 8-bit numbers need a library that the wheels lack; what is declared with them needs the names only.
#pragma once
#define __CUDA_FP16_H__
#define __CUDA_BF16_H__
#define __CUDA_FP8_H__
struct __half;
struct __nv_bfloat16;
