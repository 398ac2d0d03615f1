//! The user that a program runs as.

use super::NONE;
use nix::unistd::{self, getgrouplist};
use rustix::{
    process::{Gid, Uid},
    thread::{set_thread_gid, set_thread_groups, set_thread_uid},
};
use std::{
    ffi::{CString, OsStr},
    fmt, io,
    path::PathBuf,
    str::FromStr,
};

/// A user of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The home directory.
    pub home: PathBuf,
    /// What a process needs to become that user.
    pub identity: Identity,
}

/// The numbers of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

/// Why there is no such user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// The host has none of that name.
    #[error("there is no user {0:?} on this host")]
    Unknown(String),
    /// It can't be looked up.
    #[error("can't look up the user {0:?}: {1}")]
    Failed(String, String),
}

impl User {
    /// Looks a user up by name.
    pub fn find(name: &str) -> Result<Self, UserError> {
        let failed = |error: &dyn fmt::Display| UserError::Failed(name.into(), error.to_string());
        let user = unistd::User::from_name(name).map_err(|error| failed(&error))?;
        let user = user.ok_or_else(|| UserError::Unknown(name.into()))?;
        let c_name = CString::new(name).map_err(|error| failed(&error))?;
        let groups = getgrouplist(&c_name, user.gid).map_err(|error| failed(&error))?;
        Ok(Self {
            name: user.name,
            home: user.dir,
            identity: Identity {
                uid: user.uid.as_raw(),
                gid: user.gid.as_raw(),
                groups: groups.iter().map(|group| group.as_raw()).collect(),
            },
        })
    }

    /// Whether this process runs as that user already.
    pub fn is_current(&self) -> bool {
        rustix::process::geteuid().as_raw() == self.identity.uid
    }
}

impl Identity {
    /// The user and group of what is to belong to that user.
    pub(super) fn owner(&self) -> (Uid, Gid) {
        (Uid::from_raw(self.uid), Gid::from_raw(self.gid))
    }

    /// Becomes that user, for good. Only for a process with one thread.
    pub(super) fn assume(&self) -> io::Result<()> {
        let groups: Vec<Gid> = self.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        set_thread_groups(&groups)?;
        set_thread_gid(Gid::from_raw(self.gid))?;
        set_thread_uid(Uid::from_raw(self.uid))?;
        Ok(())
    }
}

/// As an argument of a helper: `uid:gid:group,group`.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups: Vec<String> = self.groups.iter().map(ToString::to_string).collect();
        write!(f, "{}:{}:{}", self.uid, self.gid, groups.join(","))
    }
}

impl FromStr for Identity {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| text.parse::<u32>().map_err(|_| ());
        let [uid, gid, groups] = text.split(':').collect::<Vec<_>>()[..] else {
            return Err(());
        };
        let groups = groups.split(',').filter(|group| !group.is_empty());
        Ok(Self {
            uid: number(uid)?,
            gid: number(gid)?,
            groups: groups.map(number).collect::<Result<_, _>>()?,
        })
    }
}

/// The argument of a helper that says whom to become.
pub(super) fn argument(user: Option<&User>) -> String {
    user.map_or_else(|| NONE.to_owned(), |user| user.identity.to_string())
}

/// Whom that argument names; none: nobody else.
pub(super) fn identity(argument: Option<&OsStr>) -> io::Result<Option<Identity>> {
    let Some(argument) = argument else {
        return Ok(None);
    };
    let identity = argument.to_str().and_then(|text| text.parse().ok());
    Ok(Some(identity.ok_or(io::ErrorKind::InvalidInput)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_and_nobody_else_is_made_up() {
        let root = User::find("root").unwrap();
        assert_eq!((root.identity.uid, root.identity.gid), (0, 0));
        let name = "no-such-user-here";
        assert_eq!(User::find(name), Err(UserError::Unknown(name.into())));
        assert!(User::find("a\0b").is_err());
    }

    #[test]
    fn an_identity_reads_back() {
        for text in ["0:0:", "10001:10001:10001", "1:2:3,4"] {
            let identity: Identity = text.parse().unwrap();
            assert_eq!(identity.to_string(), text);
        }
        for text in ["", "1", "1:2", "x:1:", "1:2:x", "-1:0:", "1:2:3:4"] {
            assert_eq!(text.parse::<Identity>(), Err(()), "{text}");
        }
    }
}
