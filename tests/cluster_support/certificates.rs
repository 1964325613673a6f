//! Certificates for a server, signed by the test's own authority.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster_support::process::{give_away, program, run};

/// Writes `server.crt` and `server.key` for `localhost`, and the authority's certificate as
/// `authority.crt`, into the folder.
pub(crate) fn write_certificates(folder: &Path) {
    let openssl = program("openssl", &[PathBuf::from("/usr/bin")], "openssl");
    let openssl = |arguments: &str| {
        let mut command = Command::new(&openssl);
        run(command.args(arguments.split_whitespace()).current_dir(folder));
    };
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
         -subj /CN=keygate-tests -keyout authority.key -out authority.crt \
         -addext basicConstraints=critical,CA:TRUE",
    );
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost \
         -keyout server.key -out server.csr",
    );
    std::fs::write(folder.join("names"), "subjectAltName=DNS:localhost\n").unwrap();
    openssl(
        "x509 -req -in server.csr -CA authority.crt -CAkey authority.key -CAcreateserial \
         -days 2 -extfile names -out server.crt",
    );
    for name in ["server.crt", "server.key", "authority.crt"] {
        let file = folder.join(name);
        std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        give_away(folder, &file);
    }
}
