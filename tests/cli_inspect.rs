//! `llm-int8 inspect`: trees, parameters and footprints match transformers'.

use crate::support::llm_int8 as run;
use crate::support::{golden, golden_text, gpt2, stdout};
use std::path::Path;
use tempfile::TempDir;

#[test]
fn inspect_prints_tree_parameters_and_footprint() {
    let text = stdout(&run(&["inspect", &gpt2(), "--params"]));
    let expected =
        golden_text("models/gpt2/print.txt") + &golden_text("models/gpt2/parameters.txt");
    let rest = text.strip_prefix(&expected).expect("tree, then parameters");
    assert_eq!(
        rest.lines().next().unwrap(),
        "footprint by transformers' rule: 129,894 bytes (parameters 117,600, buffers 12,294)"
    );
    assert_eq!(
        stdout(&run(&["inspect", &gpt2(), "--params", "--headers-only"])),
        text
    );
}

/// The checkpoint is 3.2 GB, but `--headers-only` needs no more than its header.
#[test]
fn inspect_of_gpt2_large_prints_what_transformers_prints() {
    let folder = TempDir::new().unwrap();
    std::fs::copy(
        golden("print/gpt2-large.config.json"),
        folder.path().join("config.json"),
    )
    .unwrap();
    let length = write_gpt2_large_header(&folder.path().join("model.safetensors"));
    assert_eq!(length, 3_247_115_264);

    let name = folder.path().display().to_string();
    let text = stdout(&run(&["inspect", &name, "--params", "--headers-only"]));
    let rest = text
        .strip_prefix(&golden_text("print/gpt2-large.txt"))
        .expect("the golden tree");
    let parameters: Vec<&str> = rest
        .lines()
        .filter(|line| line.contains(" torch."))
        .collect();
    assert_eq!(parameters.len(), 436);

    let int8: Vec<&&str> = parameters
        .iter()
        .filter(|line| line.contains("torch.int8"))
        .collect();
    assert_eq!(int8.len(), 4 * 36);

    let projections = [
        "attn.c_attn.weight",
        "attn.c_proj.weight",
        "mlp.c_fc.weight",
        "mlp.c_proj.weight",
    ];
    assert!(
        int8.iter()
            .all(|line| projections.iter().any(|name| line.contains(name)))
    );
    assert_eq!(
        parameters
            .iter()
            .filter(|line| line.contains("torch.float16"))
            .count(),
        436 - 4 * 36
    );
    assert!(
        rest.contains("footprint by transformers' rule: 878,020,168 bytes"),
        "{rest}"
    );
}

/// Writes a sparse safetensors file with the header of gpt2-large on the hub. Returns the size of
/// its tensors in bytes.
fn write_gpt2_large_header(path: &Path) -> u64 {
    let layers = 36u64;
    let hidden = 1280u64;
    let vocabulary = 50257u64;
    let positions = 1024u64;
    let mut tensors = vec![
        ("wte.weight".to_owned(), vec![vocabulary, hidden]),
        ("wpe.weight".to_owned(), vec![positions, hidden]),
    ];

    for layer in 0..layers {
        let shapes: [(&str, Vec<u64>); 13] = [
            ("ln_1.weight", vec![hidden]),
            ("ln_1.bias", vec![hidden]),
            ("attn.bias", vec![1, 1, positions, positions]),
            ("attn.c_attn.weight", vec![hidden, 3 * hidden]),
            ("attn.c_attn.bias", vec![3 * hidden]),
            ("attn.c_proj.weight", vec![hidden, hidden]),
            ("attn.c_proj.bias", vec![hidden]),
            ("ln_2.weight", vec![hidden]),
            ("ln_2.bias", vec![hidden]),
            ("mlp.c_fc.weight", vec![hidden, 4 * hidden]),
            ("mlp.c_fc.bias", vec![4 * hidden]),
            ("mlp.c_proj.weight", vec![4 * hidden, hidden]),
            ("mlp.c_proj.bias", vec![hidden]),
        ];
        tensors.extend(shapes.map(|(name, shape)| (format!("h.{layer}.{name}"), shape)));
    }
    tensors.extend([
        ("ln_f.weight".to_owned(), vec![hidden]),
        ("ln_f.bias".to_owned(), vec![hidden]),
    ]);
    let mut header = serde_json::Map::new();
    let mut offset = 0u64;
    for (name, shape) in tensors {
        let end = offset + 4 * shape.iter().product::<u64>();
        header.insert(
            name,
            serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [offset, end] }),
        );
        offset = end;
    }

    let json = serde_json::Value::Object(header).to_string();
    let mut start = (json.len() as u64).to_le_bytes().to_vec();
    start.extend(json.as_bytes());
    std::fs::write(path, &start).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(start.len() as u64 + offset).unwrap();

    offset
}

#[test]
fn inspect_prints_json() {
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&run(&["inspect", &gpt2(), "--json"]))).unwrap();
    assert_eq!(json["footprint"]["transformers"], 129_894);
    assert_eq!(
        format!("{}\n", json["tree"].as_str().unwrap()),
        golden_text("models/gpt2/print.txt")
    );

    let parameter = &json["parameters"][4];
    assert_eq!(parameter["name"], "transformer.h.0.attn.c_attn.weight");
    assert_eq!(
        (&parameter["dtype"], &parameter["shape"]),
        (&"int8".into(), &serde_json::json!([144, 48]))
    );
    assert_eq!(json["int8_layers"].as_array().unwrap().len(), 12);
    assert_eq!(
        json["kept_layers"][0],
        serde_json::json!({ "path": "lm_head", "because": "lm_head" })
    );
}
