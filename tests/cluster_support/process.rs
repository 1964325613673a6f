//! Processes of a test, run as a user that PostgreSQL accepts, and ended with the test.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// The first of these programs that is installed. The test fails if there is none.
pub(crate) fn program(name: &str, folders: &[PathBuf], package: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = std::env::split_paths(&path).chain(folders.iter().cloned());
    candidates.map(|folder| folder.join(name)).find(|file| file.exists()).unwrap_or_else(|| {
        panic!(
            "`{name}` is neither in PATH nor in {folders:?}; on Debian: apt-get install {package}"
        )
    })
}

/// A folder of the user that runs the server.
pub(crate) fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    if is_root() {
        let [user, group] = ["-u", "-g"].map(|kind| {
            let id = run(Command::new("id").args([kind, "postgres"]));
            Some(id.trim().parse().unwrap())
        });
        chown(folder.path(), user, group).unwrap();
    }
    folder
}

/// Gives a file that the test has written to the user of the folder.
pub(crate) fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let file = folder.join(name);
    std::fs::write(&file, text).unwrap();
    give_away(folder, &file);
    file
}

pub(crate) fn give_away(folder: &Path, file: &Path) {
    let owner = folder.metadata().unwrap();
    chown(file, Some(owner.uid()), Some(owner.gid())).unwrap();
}

/// Root may not run a server; the user `postgres` runs it then.
pub(crate) fn command(folder: &Path, program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let owner = folder.metadata().unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid", &owner.uid().to_string(), "--regid", &owner.gid().to_string()])
        .args(["--clear-groups", "--"])
        .arg(program)
        .current_dir(folder);
    command
}

/// Runs it to its end and checks that it succeeded. Returns its output.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Starts it, with its output in a file.
pub(crate) fn spawn(command: &mut Command, log: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log).unwrap();
    let log = (log.try_clone().unwrap(), log);
    command.stdin(Stdio::null()).stdout(log.0).stderr(log.1).spawn().unwrap()
}

/// Prints the end of the log in that folder if the test has failed.
pub(crate) fn print_log(name: &str, folder: &Path) {
    if std::thread::panicking() {
        let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        eprintln!("the log of {name}:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
    }
}

/// Sends a signal to those processes that still exist.
pub(crate) fn signal(name: &str, processes: &[u32]) {
    let ids: Vec<_> = processes.iter().map(u32::to_string).collect();
    let line = format!("kill -{name} {} 2>/dev/null", ids.join(" "));
    let _ = Command::new("sh").args(["-c", &line]).status();
}

/// The child processes of a process.
pub(crate) fn children(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let id: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // After the name, which may contain anything: the state and the parent.
        let parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((id, parent))
    });
    processes.filter(|(_, its)| *its == parent).map(|(id, _)| id).collect()
}

fn is_root() -> bool {
    Path::new("/proc/self").metadata().unwrap().uid() == 0
}
