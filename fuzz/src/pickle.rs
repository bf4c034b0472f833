//! Files of `torch.save` by grammar: opcodes and globals chosen by bytes, in a zip archive.

use crate::Choices;
use crate::archive::Archive;

/// Modules and names that the reader knows, and some that it must not.
const GLOBALS: [(&str, &str); 34] = [
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch", "FloatStorage"),
    ("torch", "HalfStorage"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.nn.parameter", "Parameter"),
    ("torch", "Tensor"),
    ("torch", "Size"),
    ("torch", "BFloat16Storage"),
    ("torch", "CharStorage"),
    ("torch", "LongStorage"),
    ("torch", "BoolStorage"),
    ("torch", "ComplexDoubleStorage"),
    ("torch", "QInt8Storage"),
    ("torch", "QUInt4x2Storage"),
    ("torch.storage", "UntypedStorage"),
    ("torch.cuda", "DoubleStorage"),
    ("torch", "float32"),
    ("torch", "float8_e4m3fn"),
    ("torch", "complex32"),
    ("torch._utils", "_rebuild_qtensor"),
    ("torch._utils", "_rebuild_sparse_tensor"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("_codecs", "encode"),
    ("builtins", "set"),
    ("__builtin__", "bytearray"),
    ("collections", "Counter"),
    ("os", "system"),
    ("torch", "per_tensor_affine"),
];

const TEXTS: [&str; 16] = [
    "storage",
    "0",
    "1",
    "cpu",
    "a.weight",
    "a.bias",
    "weight",
    "",
    "state_dict",
    "model",
    "cuda:0",
    "é",
    "neg",
    "conj",
    "a.weight_format",
    "2",
];

/// A whole file, and in some of them the pickle is damaged or a record is missing.
pub fn file(from: &mut Choices<'_>) -> Vec<u8> {
    let mut archive = Archive::default();
    let style = from.byte();
    let folder = if style & 1 == 0 { "archive" } else { "m/x" };
    let folder = folder.split('/').next().unwrap_or_default();
    let first = from.byte();
    let lengths = [from.below(64), from.below(64), from.below(8)];
    let pickle = pickle(from);
    let method = if style & 0xf0 == 0xf0 { 8 } else { 0 };

    archive.add(&format!("{folder}/data.pkl"), &pickle, method);
    if style & 2 == 2 {
        let order: &[u8] = [b"little" as &[u8], b"big", b"middle", b""][usize::from(first) % 4];
        archive.add(&format!("{folder}/byteorder"), order, 0);
    }
    for (number, length) in lengths.into_iter().enumerate() {
        if style & (4 << number) == 0 {
            let content: Vec<u8> = (0..length * 4).map(|place| place as u8).collect();
            archive.add(&format!("{folder}/data/{number}"), &content, 0);
        }
    }
    let mut bytes = archive.finish();
    if style == 0xff {
        bytes.truncate(usize::from(from.short()));
    }

    bytes
}

/// A file from before PyTorch 1.6: magic number, protocol, system, the pickle, the keys, then the
/// storages.
pub fn legacy(from: &mut Choices<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.");
    bytes.extend(b"\x80\x02M\xe9\x03.");
    bytes.extend(b"\x80\x02}q\x00(X\x0d\x00\x00\x00little_endian\x88u.");
    bytes.extend(pickle(from));
    bytes.extend(b"\x80\x02]q\x00(X\x01\x00\x00\x000X\x01\x00\x00\x001e.");
    while !from.is_empty() {
        let length = from.number();
        bytes.extend(length.to_le_bytes());
        bytes.extend(vec![7; length.min(64) as usize * 4]);
    }

    bytes
}

/// A dictionary of tensors, each made as torch makes it or by opcodes at random.
pub fn pickle(from: &mut Choices<'_>) -> Vec<u8> {
    let mut out = vec![0x80, 2];
    if from.flag() {
        global(&mut out, 0);
        out.extend(b")R");
    } else {
        out.push(b'}');
    }
    out.extend(b"q\x00(");
    while !from.is_empty() {
        match from.below(8) {
            0..=2 => {
                text(&mut out, from.one(&TEXTS));
                tensor(&mut out, from);
            }
            3 => {
                out.push(b'h');
                out.push(from.byte() % 8);
            }
            4 => {
                let mark = out.len();
                out.push(b'0');
                out.truncate(mark + usize::from(from.flag()));
            }
            _ => opcode(&mut out, from),
        }
        if out.len() > 1 << 16 {
            break;
        }
    }
    out.extend(b"u.");
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn global(out: &mut Vec<u8>, number: usize) {
    let (module, name) = GLOBALS[number % GLOBALS.len()];
    out.push(b'c');
    out.extend(format!("{module}\n{name}\n").as_bytes());
}

fn integer(out: &mut Vec<u8>, number: u64) {
    match number {
        0..=255 => out.extend([b'K', number as u8]),
        256..=65_535 => {
            out.push(b'M');
            out.extend((number as u16).to_le_bytes());
        }
        65_536..=0x7fff_ffff => {
            out.push(b'J');
            out.extend((number as u32).to_le_bytes());
        }
        _ => {
            out.extend([0x8a, 8]);
            out.extend(number.to_le_bytes());
        }
    }
}

/// `_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)`, mostly within its
/// storage.
fn tensor(out: &mut Vec<u8>, from: &mut Choices<'_>) {
    global(
        out,
        if from.rarely() {
            from.below(GLOBALS.len())
        } else {
            1
        },
    );
    out.extend(b"((");
    text(out, "storage");
    global(out, if from.flag() { 2 } else { from.below(24) });
    text(out, from.one(&["0", "1", "2"]));
    text(out, "cpu");
    integer(
        out,
        if from.rarely() {
            from.number()
        } else {
            from.below(64) as u64
        },
    );
    out.extend(b"tQ");
    integer(out, if from.flag() { 0 } else { from.number() });
    for _ in 0..2 {
        out.push(b'(');
        for _ in 0..from.below(4) {
            let size = if from.rarely() {
                from.number()
            } else {
                from.below(9) as u64
            };
            integer(out, size);
        }
        out.push(b't');
    }
    out.push(0x89);
    global(out, 0);
    out.extend(b")RtR");
}

fn opcode(out: &mut Vec<u8>, from: &mut Choices<'_>) {
    // Opcodes without an argument that the reader knows, then some that it does not.
    const PLAIN: &[u8] =
        b"(.012NeaQR)]}tdubsl\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94o\x92FIPgip";
    match from.below(16) {
        0..=6 => out.push(PLAIN[from.below(PLAIN.len())]),
        7 => out.extend([b'q', from.byte() % 8]),
        8 => out.extend([b'h', from.byte() % 8]),
        9 | 10 => text(out, from.one(&TEXTS)),
        11 | 12 => integer(out, from.number()),
        13 => global(out, usize::from(from.byte())),
        14 => {
            // An opcode with a length, which may be a lie.
            out.push(from.pick(b"XTUCBGr\x8a\x8b\x8c\x8d\x8e\x95\x96j"));
            out.extend(from.number().to_le_bytes());
        }
        _ => out.push(from.byte()),
    }
}
