//! What a program does when a signal ends it. A binary of its own, as it removes the temporary
//! files of the whole process.

use llm_int8_files::{NewFile, NewFolder, remove_unfinished};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// One test, because all of it is the state of one process.
#[test]
fn nothing_stays_and_nothing_is_begun_or_renamed_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let names = || -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let at = |name: &str| folder.path().join(name);

    let mut file = NewFile::begin(&at("file")).unwrap();
    file.write_all(b"half").unwrap();
    let new = NewFolder::begin(&at("folder")).unwrap();
    std::fs::create_dir(new.path().join("deeper")).unwrap();
    std::fs::write(new.path().join("deeper/model"), "half").unwrap();
    llm_int8_files::write(&at("whole"), b"whole").unwrap();
    assert_eq!(names().len(), 3);

    let unfinished = remove_unfinished();
    assert_eq!(names(), ["whole"]);

    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let commit = scope.spawn(|| {
            let committed = file.commit();
            assert!(is_over.load(Ordering::SeqCst), "the commit waited");
            committed
        });
        let begin = scope.spawn(|| {
            let written = llm_int8_files::write(&at("later"), b"later");
            assert!(is_over.load(Ordering::SeqCst), "the write waited");
            written
        });

        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(names(), ["whole"]);
        is_over.store(true, Ordering::SeqCst);
        drop(unfinished);
        assert!(commit.join().unwrap().is_err(), "its file is gone");
        begin.join().unwrap().unwrap();
    });

    drop(new);
    assert_eq!(names(), ["later", "whole"]);
}
