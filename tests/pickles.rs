//! Files written by `torch.save` (`golden/field/pickles`, made by
//! scripts/make_field_weights_golden.py), and damaged ones.

use crate::support::{golden, read_tensors};
use llm_int8_nn::Result;
use llm_int8_nn::checkpoint::Checkpoint;
use proptest::prelude::*;
use std::path::Path;
use tempfile::TempDir;

fn open(name: &str) -> Result<Checkpoint> {
    Checkpoint::open_pickle(&[golden(&format!("field/pickles/{name}"))], None)
}

fn open_bytes(bytes: &[u8]) -> Result<Checkpoint> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open_pickle(&[path], None)
}

#[test]
fn tensors_of_every_layout_and_dtype_match_torch() {
    let expected = read_tensors("field/pickles/tensors.safetensors");
    for file in ["protocol_2.bin", "protocol_4.bin", "legacy.bin"] {
        let checkpoint = open(file).unwrap();
        for (name, (dtype, shape, bytes)) in &expected {
            if file == "legacy.bin" && name == "f8" {
                continue; // newer than the legacy format
            }

            let view = checkpoint
                .tensor(name)
                .unwrap_or_else(|error| panic!("{file}: {error}"));
            assert_eq!(
                (view.dtype, view.shape),
                (*dtype, shape.as_slice()),
                "{file}: {name}"
            );
            assert_eq!(view.data, bytes.as_slice(), "{file}: {name}");
        }

        let only_here = checkpoint
            .entries()
            .filter(|(name, _)| !expected.contains_key(*name))
            .count();
        assert_eq!(
            only_here,
            if file == "legacy.bin" { 1 } else { 2 },
            "c64, and u16 except in the legacy file"
        );
    }
}

#[test]
fn contiguous_tensors_are_borrowed_from_the_file_and_others_are_gathered() {
    let checkpoint = open("protocol_2.bin").unwrap();
    for (name, is_borrowed) in [
        ("plain", true),
        ("shared_part", true),
        ("rows_cut", true),
        ("transposed", false),
    ] {
        let data = checkpoint.tensor(name).unwrap().data;
        assert_eq!(
            matches!(data, std::borrow::Cow::Borrowed(_)),
            is_borrowed,
            "{name}"
        );
    }
}

#[test]
fn values_that_are_not_tensors_are_skipped_and_named_when_requested() {
    let checkpoint = open("others.bin").unwrap();
    let names: Vec<&str> = checkpoint.entries().map(|(name, _)| name).collect();
    assert_eq!(names, ["marked", "plain"]);

    for (name, kind) in [
        ("c128", "complex128"),
        ("quantized", "a quantized tensor"),
        ("sparse", "a sparse tensor"),
        ("negative", "negative or conjugate bit"),
        ("step", "a Python int"),
        ("large", "a Python int"),
        ("text", "a Python str"),
        ("size", "a Python tuple"),
        ("device", "a Python device"),
        ("nested", "a Python dict"),
    ] {
        let error = checkpoint.tensor(name).unwrap_err().to_string();
        assert!(
            error.contains(kind) && error.contains("others.bin") && error.contains(name),
            "{error}"
        );
    }
}

#[test]
fn other_kinds_of_files_are_rejected_by_name() {
    for (file, message) in [
        (
            "nested.bin",
            "under `state_dict`, where transformers does not look",
        ),
        ("namespace.bin", "an object of `argparse.Namespace`"),
        (
            "list.bin",
            "it holds a Python list and not a dictionary of tensors",
        ),
        ("no_tensors.bin", "it holds no tensors"),
        ("big_endian.bin", "big-endian"),
        ("compressed.bin", "is compressed"),
        ("script.bin", "TorchScript"),
    ] {
        let error = open(file).expect_err(file).to_string();
        assert!(error.contains(message) && error.contains(file), "{error}");
        assert!(!error.contains("download it again"), "{error}");
    }

    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n";
    let error = open_bytes(pointer).unwrap_err().to_string();
    assert!(error.contains("git lfs pull"), "{error}");
}

#[test]
fn the_index_decides_which_bin_file_a_tensor_comes_from() {
    let folder = TempDir::new().unwrap();
    let files = ["protocol_2.bin", "protocol_4.bin", "small.bin"].map(|name| {
        let path = folder.path().join(name);
        std::fs::copy(golden(&format!("field/pickles/{name}")), &path).unwrap();
        path
    });
    let index = folder.path().join("pytorch_model.bin.index.json");
    let map = r#"{"weight_map": {"plain": "protocol_2.bin", "f16": "small.bin", "one": "protocol_4.bin"}}"#;
    std::fs::write(&index, map).unwrap();
    let checkpoint = Checkpoint::open_pickle(&files, Some(&index)).unwrap();
    let found: Vec<_> = checkpoint
        .entries()
        .map(|(name, _)| (name, checkpoint.file_of(name).unwrap()))
        .collect();
    let expected = [("f16", &files[1]), ("one", &files[1]), ("plain", &files[0])];
    assert!(
        found
            .iter()
            .zip(&expected)
            .all(|((a, file), (b, path))| a == b && Path::new(file) == path.as_path())
    );
    assert_eq!(found.len(), 3);

    // A file that the index names must be readable. A file that it does not name is not opened.
    std::fs::write(&files[2], "nothing").unwrap();
    assert!(Checkpoint::open_pickle(&files, Some(&index)).is_err());

    std::fs::write(&index, map.replace("small.bin", "protocol_4.bin")).unwrap();
    assert!(Checkpoint::open_pickle(&files, Some(&index)).is_ok());

    let error = Checkpoint::open_pickle(&files[..1], Some(&index))
        .unwrap_err()
        .to_string();
    assert!(error.contains("names the file protocol_4.bin"), "{error}");
}

/// A zip file of uncompressed records, as torch writes it.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let records: [(&str, &[u8]); 2] = [("a/data.pkl", pickle), ("a/data/0", &[0; 16])];
    let mut bytes = Vec::new();
    let mut directory = Vec::new();
    for (name, data) in records {
        let length = (data.len() as u32).to_le_bytes();
        let mut header = vec![0; 4]; // flags, method: stored
        header.extend([0; 8]); // time, checksum: ignored
        header.extend(length.iter().chain(&length));
        header.extend((name.len() as u32).to_le_bytes()); // no extra field
        directory.extend(b"PK\x01\x02\x14\0\x14\0");
        directory.extend(&header);
        directory.extend([0; 10]);
        directory.extend((bytes.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        bytes.extend(b"PK\x03\x04\x14\0");
        bytes.extend(&header);
        bytes.extend(name.as_bytes());
        bytes.extend(data);
    }

    let start = bytes.len() as u32;
    let length = directory.len() as u32;
    bytes.extend(directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0\x02\0\x02\0");
    bytes.extend(length.to_le_bytes().iter().chain(&start.to_le_bytes()));
    bytes.extend([0; 2]);

    bytes
}

fn error_of(pickle: &[u8]) -> String {
    open_bytes(&archive(pickle)).unwrap_err().to_string()
}

/// `{"w": _rebuild_tensor_v2(storage of 4 floats, …)}` with these arguments after the storage.
fn tensor(arguments: &[u8]) -> Vec<u8> {
    let mut pickle =
        b"\x80\x02}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n\
                       X\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
            .to_vec();
    pickle.extend(arguments);
    pickle.extend(b"tRs.");

    pickle
}

#[test]
fn views_past_the_end_of_their_storage_are_rejected_before_allocating() {
    assert!(open_bytes(&archive(&tensor(b"K\0K\x02K\x02\x86K\x02K\x01\x86"))).is_ok());

    for arguments in [
        &b"K\x01K\x02K\x02\x86K\x02K\x01\x86"[..], // offset
        b"K\0K\x02K\x02\x86K\x03K\x01\x86",        // stride
        b"K\0K\x02\x85K\x02K\x01\x86",             // more strides than dimensions
        b"K\0\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f\x85K\0\x85", // 2^63 - 1 elements at one address
        b"K\0\x8a\x05\0\0\0\0\x01\x85K\0\x85",                     // 2^32 elements
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7fK\x02\x85K\x01\x85", // an offset that overflows
    ] {
        let error = error_of(&tensor(arguments));
        assert!(
            error.contains("tensor `w`") && error.contains("does not lie within"),
            "{error}"
        );
    }

    let error = error_of(&tensor(b"J\xff\xff\xff\xffK\x02\x85K\x01\x85"));
    assert!(error.contains("a size is -1"), "{error}");

    let missing = tensor(b"K\0K\x02\x85K\x01\x85");
    let offset = missing
        .windows(6)
        .position(|bytes| bytes == b"X\x01\0\0\x000")
        .unwrap();
    let mut missing = missing.clone();
    missing[offset + 5] = b'7';
    assert!(error_of(&missing).contains("needs the record `data/7`"));
}

#[test]
fn hostile_pickles_are_rejected_with_a_reason() {
    let nested = |count: usize| {
        let mut pickle = b"\x80\x02)".to_vec();
        pickle.extend(std::iter::repeat_n(0x85, count));
        pickle.push(b'.');
        pickle
    };

    assert!(
        error_of(&nested(1_000_000)).contains("it holds a Python tuple"),
        "the parser does not recurse"
    );

    // Each tuple holds the previous one twice: 60 values with 2^60 leaves.
    let mut doubling = b"\x80\x02}X\x01\0\0\0w)".to_vec();
    (0..60).for_each(|_| doubling.extend(b"2\x86"));
    doubling.extend(b"s.");
    assert!(error_of(&doubling).contains("no tensors"));

    for (pickle, message) in [
        (&b"\x80\x02X\xff\xff\xff\xff."[..], "announces"),
        (
            b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff.",
            "announces",
        ),
        (
            b"\x80\x02cos\nsystem\n(X\x02\0\0\0lstR.",
            "an object of `os.system`",
        ),
        (
            b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
            "an object of `os.system`",
        ),
        (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
            "has no storage",
        ),
        (
            b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.",
            "is called with 0 arguments",
        ),
        (b"\x80\x02(1.", "more from the stack"),
        (b"\x80\x02t.", "a mark is missing"),
        (b"\x80\x02h\x05.", "memo 5 was never written"),
        (
            b"\x80\x02K\x01K\x02K\x03s.",
            "sets items of a value of type int",
        ),
        (b"\x80\x09.", "protocol is 9"),
        (b"\x80\x02]", "ends"),
        (b"\x80\x02i", "opcode 0x69"),
    ] {
        let error = error_of(pickle);
        assert!(error.contains(message), "{message}: {error}");
    }

    let endless = vec![b'N'; 3 << 20];
    assert!(error_of(&endless).contains("opcodes"));
}

/// Opcodes with their arguments, as a rule invalid where they end up.
fn opcode() -> impl Strategy<Value = Vec<u8>> {
    let globals = [
        "torch._utils\n_rebuild_tensor_v2\n",
        "torch._utils\n_rebuild_tensor_v3\n",
        "torch\nFloatStorage\n",
    ];
    let more = [
        "collections\nOrderedDict\n",
        "torch._utils\n_rebuild_parameter\n",
        "torch._tensor\n_rebuild_from_type_v2\n",
        "torch\nfloat16\n",
        "torch.storage\nUntypedStorage\n",
    ];
    let names: Vec<Vec<u8>> = globals
        .iter()
        .chain(&more)
        .map(|name| [b"c", name.as_bytes()].concat())
        .collect();
    let plain =
        prop::sample::select(b"N)]}(0tal1eusdRbQ2\x85\x86\x87\x81\x88\x8f\x90\x94".to_vec());

    prop_oneof![
        6 => plain.prop_map(|byte| vec![byte]),
        2 => any::<u8>().prop_map(|number| vec![b'K', number]),
        1 => any::<i32>().prop_map(|number| [&b"J"[..], &number.to_le_bytes()].concat()),
        1 => any::<u8>().prop_map(|slot| vec![b'q', slot % 8]),
        1 => any::<u8>().prop_map(|slot| vec![b'h', slot % 8]),
        1 => Just(b"X\x07\0\0\0storage".to_vec()),
        1 => Just(b"X\x01\0\0\x000".to_vec()),
        2 => prop::sample::select(names),
        1 => Just(b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ".to_vec()),
    ]
}

/// Reads every tensor, if the file could be opened.
fn read_all(opened: Result<Checkpoint>) {
    let Ok(checkpoint) = opened else { return };
    let names: Vec<String> = checkpoint
        .entries()
        .map(|(name, _)| name.to_owned())
        .collect();

    for name in names {
        let view = checkpoint.tensor(&name).unwrap();
        let expected: usize = view.shape.iter().product::<usize>() * view.dtype.bitsize() / 8;
        assert_eq!(view.data.len(), expected, "{name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_pickle_program_gives_tensors_or_an_error(program in prop::collection::vec(opcode(), 0..60)) {
        let mut pickle = b"\x80\x02}X\x01\0\0\0w".to_vec();
        pickle.extend(program.concat());
        pickle.extend(b"s.");
        read_all(open_bytes(&archive(&pickle)));
    }

    #[test]
    fn damaged_files_give_tensors_or_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        file in prop::sample::select(vec!["protocol_2.bin", "protocol_4.bin", "legacy.bin", "others.bin"]),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut bytes = std::fs::read(golden(&format!("field/pickles/{file}"))).unwrap();
        for (offset, byte) in changes {
            let offset = offset.index(bytes.len());
            bytes[offset] = byte;
        }

        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }

        read_all(open_bytes(&bytes));
    }
}
