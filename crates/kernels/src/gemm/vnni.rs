//! Matmul with `vpdpbusd`, four unsigned by four signed codes, summed, on 256 bits (AVX-VNNI) and
//! 512 bits (AVX-512 VNNI). The 512-bit module also packs and transposes with AVX-512.

#![allow(
    clippy::needless_range_loop,
    reason = "several arrays of registers are indexed side by side"
)]
#![expect(
    unsafe_code,
    reason = "vector loads through pointers, and calls into functions compiled for VNNI"
)]

/// The dot products of a few rows, and the sums of panels, for one register width.
macro_rules! dot_products {
    ($features:literal, $kinds:pat, $register:ty, $zero:path, $load:path, $splat:path, $xor:path,
     $multiply:path, $add:path, $sum:path) => {
        /// Codes of a register.
        const LANES: usize = size_of::<$register>();

        /// Prefetch distance in bytes.
        const AHEAD: usize = 4096;

        /// `sums[m · N + n] = Σ a[m][k] · w[n · K + k]`, exact; `offsets[m]` is `128 · Σ a[m][k]`.
        pub(in crate::gemm) fn dots<const M: usize>(
            isa: Isa,
            a: [&[i8]; M],
            offsets: [i32; M],
            w: &[i8],
            sums: &mut [i32],
        ) {
            let length = a[0].len();
            let outputs = sums.len() / M;
            assert!(matches!(isa.kind(), $kinds) && a.iter().all(|a| a.len() == length));
            assert!(w.len() == outputs * length && sums.len() == outputs * M);

            for n in 0..outputs {
                let row = &w[n * length..][..length];

                // SAFETY: the `Isa` proves that the CPU supports the instructions; every slice has
                // `length` codes.
                let found = unsafe {
                    match M {
                        1 => dot::<M, 4>(a, row),
                        2 => dot::<M, 2>(a, row),
                        _ => dot::<M, 1>(a, row),
                    }
                };

                for m in 0..M {
                    sums[m * outputs + n] = found[m].wrapping_sub(offsets[m]);
                }
            }
        }

        /// `Σ a[m][k] · (w[k] + 128)` for each row `m`, in `PARTS` independent sums.
        ///
        /// # Safety
        /// The CPU supports the instructions; all slices have the same length.
        #[target_feature(enable = $features)]
        unsafe fn dot<const M: usize, const PARTS: usize>(a: [&[i8]; M], w: &[i8]) -> [i32; M] {
            let step = PARTS * LANES;
            let whole = w.len() / step * step;
            let mut sums = [[$zero(); PARTS]; M];
            let offset = $splat(-128);

            let mut k = 0;
            while k < whole {
                for part in 0..PARTS {
                    let at = k + part * LANES;

                    // The address may be past the last weight: a prefetch is a hint and never
                    // faults.
                    _mm_prefetch::<_MM_HINT_T0>(w.as_ptr().wrapping_add(at + AHEAD));

                    // SAFETY: at + LANES ≤ whole ≤ length of `w`; the load is unaligned.
                    let y = $xor(unsafe { $load(w.as_ptr().add(at).cast()) }, offset);

                    for m in 0..M {
                        // SAFETY: at + LANES ≤ whole ≤ length of `a[m]`; the load is unaligned.
                        let x = unsafe { $load(a[m].as_ptr().add(at).cast()) };
                        sums[m][part] = $multiply(sums[m][part], y, x);
                    }
                }

                k += step;
            }

            // At most PARTS - 1 registers are left, then less than one.
            while k + LANES <= w.len() {
                // SAFETY: k + LANES ≤ length of `w`; the load is unaligned.
                let y = $xor(unsafe { $load(w.as_ptr().add(k).cast()) }, offset);

                for m in 0..M {
                    // SAFETY: k + LANES ≤ length of `a[m]`; the load is unaligned.
                    let x = unsafe { $load(a[m].as_ptr().add(k).cast()) };
                    sums[m][0] = $multiply(sums[m][0], y, x);
                }

                k += LANES;
            }

            let mut out = [0i32; M];
            for m in 0..M {
                let mut total = sums[m][0];
                for part in 1..PARTS {
                    total = $add(total, sums[m][part]);
                }
                let tail = a[m][k..].iter().zip(&w[k..]);
                let tail: i32 = tail
                    .map(|(&x, &y)| i32::from(x) * (i32::from(y) + 128))
                    .sum();
                out[m] = $sum(total).wrapping_add(tail);
            }

            out
        }

        /// The sum of some codes.
        pub(in crate::gemm) fn row_sum(isa: Isa, row: &[i8]) -> i32 {
            assert!(matches!(isa.kind(), $kinds));

            // SAFETY: the `Isa` proves that the CPU supports the instructions.
            unsafe { row_sum_inner(row) }
        }

        /// # Safety
        /// The CPU supports the instructions.
        #[target_feature(enable = $features)]
        unsafe fn row_sum_inner(row: &[i8]) -> i32 {
            let ones = $splat(1);
            let mut sums = $zero();
            let (whole, rest) = row.as_chunks::<LANES>();

            for codes in whole {
                // SAFETY: `codes` has the size of a register; the load is unaligned.
                sums = $multiply(sums, ones, unsafe { $load(codes.as_ptr().cast()) });
            }

            let rest: i32 = rest.iter().map(|&code| i32::from(code)).sum();
            $sum(sums).wrapping_add(rest)
        }

        /// Fills `tile` with the sums of panels `a`, each `panel` bytes.
        pub(in crate::gemm) fn tile(
            isa: Isa,
            a: &[u8],
            panel: usize,
            w: &Weights<'_>,
            tile: &mut Tile,
        ) {
            assert!(matches!(isa.kind(), $kinds) && a.len().is_multiple_of(panel));
            assert!(panel >= w.steps * STEP_BYTES && w.rows >= 1 && w.rows <= tile.len());
            assert!(w.data.len() >= (w.rows - 1) * w.stride + w.steps * 4);
            assert!(a.len() / panel * PANEL_LANES <= tile[0].len());

            // SAFETY: the `Isa` proves that the CPU supports the instructions; the lengths were
            // checked.
            unsafe { strips(a, panel, w, tile) }
        }
    };
}

pub(super) mod v256 {
    use crate::Isa;
    use crate::gemm::avx2::{horizontal_sum, strips_of_256_bits};
    use crate::gemm::panels::{LANES as PANEL_LANES, STEP_BYTES, TILE, Tile, Weights};
    use crate::isa::Kind;
    use std::arch::x86_64::*;

    dot_products!(
        "avx2,avxvnni",
        Kind::AvxVnni,
        __m256i,
        _mm256_setzero_si256,
        _mm256_loadu_si256,
        _mm256_set1_epi8,
        _mm256_xor_si256,
        _mm256_dpbusd_avx_epi32,
        _mm256_add_epi32,
        horizontal_sum
    );

    strips_of_256_bits!("avx2,avxvnni", _mm256_dpbusd_avx_epi32);
}

pub(super) mod v512 {
    use crate::Isa;
    use crate::gemm::panels::{LANES as PANEL_LANES, MAX_PANELS, STEP_BYTES, TILE, Tile, Weights};
    use crate::isa::Kind;
    use std::arch::x86_64::*;

    dot_products!(
        "avx512f,avx512bw,avx512vnni",
        Kind::Avx512Vnni | Kind::Amx,
        __m512i,
        _mm512_setzero_si512,
        load,
        _mm512_set1_epi8,
        _mm512_xor_si512,
        _mm512_dpbusd_epi32,
        _mm512_add_epi32,
        _mm512_reduce_add_epi32
    );

    /// A load with the signature that `dot_products!` expects.
    ///
    /// # Safety
    /// The CPU has AVX-512; 64 bytes are readable at `from`.
    #[target_feature(enable = "avx512f")]
    unsafe fn load(from: *const i32) -> __m512i {
        // SAFETY: the caller guarantees 64 readable bytes; the load is unaligned.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    /// Fills `tile` with the sums of all panels of `a`, eight outputs at a time.
    ///
    /// # Safety
    /// The CPU has AVX-512 VNNI; the lengths are as [`tile`] checks.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn strips(a: &[u8], panel: usize, w: &Weights<'_>, tile: &mut Tile) {
        for n in (0..w.rows).step_by(8) {
            // SAFETY: the caller guarantees the instructions and the lengths, and `n < w.rows`.
            unsafe {
                match a.len() / panel {
                    1 => strip::<1>(a, panel, w, n, tile),
                    2 => strip::<2>(a, panel, w, n, tile),
                    _ => strip::<3>(a, panel, w, n, tile),
                }
            }
        }
    }

    /// Sums of `P` panels for eight outputs from `first` on. Outputs past the last repeat it and
    /// are not stored.
    ///
    /// # Safety
    /// The CPU has AVX-512 VNNI; `a` holds `P` panels of `w.steps` steps, each row of `w` as many
    /// dwords.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn strip<const P: usize>(
        a: &[u8],
        panel: usize,
        w: &Weights<'_>,
        first: usize,
        tile: &mut Tile,
    ) {
        const N: usize = 8;
        let mut rows = [w.data.as_ptr(); N];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = w.data[(first + i).min(w.rows - 1) * w.stride..].as_ptr();
        }

        let first_sum = |n: usize| w.first_sums[(first + n).min(TILE - 1)];
        let mut sums: [_; N] = std::array::from_fn(|n| [_mm512_set1_epi32(first_sum(n)); P]);
        for k in 0..w.steps {
            // The next tile's weights, line by line while this one is multiplied: hardware
            // prefetchers do not predict the jump between tiles. A prefetch never faults.
            if k.is_multiple_of(LANES / 4) {
                for row in rows {
                    let next = row.wrapping_add(TILE * w.stride + k * 4);
                    _mm_prefetch::<_MM_HINT_T1>(next.cast());
                }
            }

            // SAFETY: k < w.steps; a step is 64 bytes of each panel and a dword of each row.
            unsafe {
                let mut x = [_mm512_setzero_si512(); P];
                for p in 0..P {
                    x[p] = _mm512_loadu_si512(a.as_ptr().add(p * panel + k * STEP_BYTES).cast());
                }
                for n in 0..N {
                    let y = _mm512_set1_epi32(rows[n].add(k * 4).cast::<i32>().read_unaligned());
                    for p in 0..P {
                        sums[n][p] = _mm512_dpbusd_epi32(sums[n][p], x[p], y);
                    }
                }
            }
        }

        for (sums, tile) in sums.iter().zip(&mut tile[first..]) {
            for (p, sums) in sums.iter().enumerate() {
                let out = &mut tile[p * PANEL_LANES..][..PANEL_LANES];

                // SAFETY: `out` has sixteen values.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), *sums) }
            }
        }
    }

    /// `sums[i · width + n] = tile[n][first + i]` for sixteen outputs and up to sixteen rows.
    pub(in crate::gemm) fn transpose(
        isa: Isa,
        tile: &[[i32; PANEL_LANES * MAX_PANELS]],
        first: usize,
        rows: usize,
        sums: &mut [i32],
        width: usize,
    ) {
        assert!(
            matches!(isa.kind(), Kind::Avx512Vnni | Kind::Amx)
                && rows >= 1
                && tile.len() >= PANEL_LANES
        );
        assert!(rows <= PANEL_LANES && first + PANEL_LANES <= tile[0].len());
        assert!(sums.len() >= (rows - 1) * width + PANEL_LANES);

        // SAFETY: the `Isa` proves AVX-512; the checks above keep the sixteen values read from each
        // row of the tile, and those written to each row of `sums`, in bounds.
        unsafe { transpose_inner(tile, first, rows, sums, width) }
    }

    /// # Safety
    /// The CPU has AVX-512; the lengths are as [`transpose`] checks.
    #[target_feature(enable = "avx512f")]
    unsafe fn transpose_inner(
        tile: &[[i32; PANEL_LANES * MAX_PANELS]],
        first: usize,
        rows: usize,
        sums: &mut [i32],
        width: usize,
    ) {
        let mut a = [_mm512_setzero_si512(); 16];
        for n in 0..16 {
            // SAFETY: the caller guarantees first + 16 ≤ length of a row of the tile.
            a[n] = unsafe { _mm512_loadu_si512(tile[n].as_ptr().add(first).cast()) };
        }

        for (i, row) in transposed(a).iter().enumerate().take(rows) {
            // SAFETY: the caller guarantees (rows - 1) · width + 16 ≤ length of `sums`.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().add(i * width).cast(), *row) }
        }
    }

    /// Packs sixteen contiguous rows of codes into a panel; `offset` is XORed into each code.
    pub(in crate::gemm) fn pack(isa: Isa, codes: &[i8], offset: u8, panel: &mut [u8]) {
        assert!(matches!(isa.kind(), Kind::Avx512Vnni | Kind::Amx) && panel.len() == codes.len());
        assert!(codes.len().is_multiple_of(PANEL_LANES * STEP_BYTES));

        // SAFETY: the `Isa` proves AVX-512; a row is a multiple of 64 codes, and the panel is as
        // long as the codes.
        unsafe { pack_inner(codes, offset, panel) }
    }

    /// # Safety
    /// The CPU has AVX-512; the lengths are as [`pack`] checks.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pack_inner(codes: &[i8], offset: u8, panel: &mut [u8]) {
        let columns = codes.len() / PANEL_LANES;
        let offset = _mm512_set1_epi8(offset as i8);
        for k in (0..columns).step_by(STEP_BYTES) {
            let mut a = [_mm512_setzero_si512(); 16];
            for m in 0..16 {
                // SAFETY: k + 64 ≤ columns, so the load stays in row m < 16.
                let row = unsafe { _mm512_loadu_si512(codes.as_ptr().add(m * columns + k).cast()) };
                a[m] = _mm512_xor_si512(row, offset);
            }

            for (i, step) in transposed(a).iter().enumerate() {
                // SAFETY: sixteen steps of 64 bytes end at (k + 64) · 16 ≤ length of the panel.
                unsafe {
                    _mm512_storeu_si512(
                        panel.as_mut_ptr().add((k / 4 + i) * STEP_BYTES).cast(),
                        *step,
                    )
                }
            }
        }
    }

    /// Transposes 16 × 16 values of 32 bits: pairs, then fours, then halves and quarters of
    /// registers.
    #[target_feature(enable = "avx512f")]
    pub(in crate::gemm) fn transposed(mut a: [__m512i; 16]) -> [__m512i; 16] {
        let mut b = a;
        for i in 0..8 {
            b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
        }

        for i in 0..4 {
            for j in 0..2 {
                a[4 * i + 2 * j] = _mm512_unpacklo_epi64(b[4 * i + j], b[4 * i + j + 2]);
                a[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(b[4 * i + j], b[4 * i + j + 2]);
            }
        }

        // a[4 i + c] holds, in quarter q, column 4 q + c of rows 4 i to 4 i + 3.
        for c in 0..4 {
            let low = _mm512_shuffle_i32x4::<0x88>(a[c], a[4 + c]);
            let high = _mm512_shuffle_i32x4::<0xdd>(a[c], a[4 + c]);
            let low2 = _mm512_shuffle_i32x4::<0x88>(a[8 + c], a[12 + c]);
            let high2 = _mm512_shuffle_i32x4::<0xdd>(a[8 + c], a[12 + c]);
            b[c] = _mm512_shuffle_i32x4::<0x88>(low, low2);
            b[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low, low2);
            b[4 + c] = _mm512_shuffle_i32x4::<0x88>(high, high2);
            b[12 + c] = _mm512_shuffle_i32x4::<0xdd>(high, high2);
        }

        b
    }
}
