//! How a verb gets root: it has it, or sudo gives it without asking.
//!
//! Cargo itself never runs as root for a user who is not: it would leave files in the target
//! directory that the user cannot replace. Only what needs root is started with it.
use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, fs,
    os::unix::fs::MetadataExt,
    process::{Command, Stdio},
};

/// Where root's programs live; the PATH of a user on Debian lacks these.
const ROOT_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The way to root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    Root,
    /// `sudo` works without a password and keeps the environment.
    Sudo,
}

/// Neither root nor a sudo that works. The text says what to do.
#[derive(Debug)]
pub struct Missing(pub String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Missing {}

impl Privilege {
    /// The way to root at hand. `cure` completes "this needs root and sudo wants a password or is
    /// not there: ".
    pub fn find(cure: &str) -> Result<Self, Missing> {
        if is_root() {
            return Ok(Self::Root);
        }
        let sudo = Command::new("sudo")
            .args(["-n", "-E", "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if sudo.is_ok_and(|status| status.success()) {
            return Ok(Self::Sudo);
        }
        Err(Missing(format!(
            "this needs root, and there is no sudo that works without a password: {cure}"
        )))
    }

    /// The words before a program's name that start it as root, with the user's environment and
    /// with root's directories on its PATH.
    pub fn prefix(self) -> Vec<OsString> {
        let mut path = OsString::from("PATH=");
        path.push(path_with_root_directories(&env::var_os("PATH").unwrap_or_default()));
        let sudo: &[&str] = match self {
            Self::Root => &[],
            Self::Sudo => &["sudo", "-n", "-E"],
        };
        sudo.iter().map(OsString::from).chain([OsString::from("env"), path]).collect()
    }

    /// `program` as root.
    pub fn command(self, program: impl AsRef<OsStr>) -> Command {
        let prefix = self.prefix();
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg(program);
        command
    }
}

fn is_root() -> bool {
    // The directory belongs to the effective user of the process.
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

fn path_with_root_directories(path: &OsStr) -> OsString {
    let mut directories: Vec<_> = env::split_paths(path).collect();
    for directory in ROOT_DIRECTORIES {
        if !directories.iter().any(|known| known.as_os_str() == directory) {
            directories.push(directory.into());
        }
    }
    env::join_paths(directories).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_directories_follow_the_users_own() {
        assert_eq!(
            path_with_root_directories(OsStr::new("/home/u/.cargo/bin:/usr/bin:/usr/sbin")),
            "/home/u/.cargo/bin:/usr/bin:/usr/sbin:/usr/local/sbin:/sbin"
        );
    }

    #[test]
    fn sudo_never_asks_and_keeps_the_environment() {
        let prefix = Privilege::Sudo.prefix();
        assert_eq!(prefix[..4], ["sudo", "-n", "-E", "env"]);
        assert!(prefix[4].to_string_lossy().starts_with("PATH="));
        assert_eq!(Privilege::Root.prefix()[0], "env");
    }
}
