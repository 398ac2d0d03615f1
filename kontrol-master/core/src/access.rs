//! Who may do what. PURE: which principals there are ([`tokens`]), and what each role may call ([`table`]).
//!
//! A principal has a name and one role. It shows a bearer token, or a client certificate whose CN is the name and whose O is
//! the role, as `kontrol:<role>`.

pub mod table;
pub mod tokens;

use glob::Pattern;
use std::{fmt, str::FromStr};

/// What the O of a certificate begins with when it names a role.
const ORGANIZATION: &str = "kontrol:";
/// Longest name of a principal, in bytes.
pub const MAX_PRINCIPAL_BYTES: usize = 253;

/// What a principal is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Reports a pod, and runs actions there.
    Slave,
    /// Reads everything.
    Reader,
    /// Reads, runs actions, replaces the state, operates the callback.
    Operator,
    /// Is a master: what masters tell each other, and a master's own pod.
    Peer,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Slave, Self::Reader, Self::Operator, Self::Peer];

    /// As it is written in a file of tokens.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Slave => "slave",
            Self::Reader => "reader",
            Self::Operator => "operator",
            Self::Peer => "peer",
        }
    }

    /// The role that the O of a certificate names, if it is one of Kontrol's; an error when Kontrol has no such role.
    pub fn of_organization(text: &str) -> Option<Result<Self, UnknownRole>> {
        text.strip_prefix(ORGANIZATION).map(str::parse)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: write slave, reader, operator or peer")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        let named = Self::ALL.into_iter().find(|role| role.as_str() == text);
        named.ok_or_else(|| UnknownRole(text.chars().take(64).collect()))
    }
}

/// Somebody who is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    name: String,
    role: Role,
    /// The pod ids that a slave speaks for, where the name is more than one id.
    pods: Option<Pattern>,
}

/// A name that no principal can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadName {
    /// It is empty, too long, or has characters that break a line of a log.
    #[error("the name must be 1 to {MAX_PRINCIPAL_BYTES} visible characters of ASCII")]
    Form,
    /// It is no pattern of pod ids.
    #[error("the name is no pattern of pod ids: {0}")]
    Pattern(&'static str),
}

impl Principal {
    /// A principal. The name of a slave is a pod's id, or a pattern of ids (`web-*`).
    pub fn new(name: &str, role: Role) -> Result<Self, BadName> {
        let visible = name.bytes().all(|byte| byte.is_ascii_graphic());
        if !visible || name.is_empty() || name.len() > MAX_PRINCIPAL_BYTES {
            return Err(BadName::Form);
        }
        let pods = (role == Role::Slave && name.contains(['*', '?', '[']))
            .then(|| Pattern::new(name))
            .transpose()
            .map_err(|error| BadName::Pattern(error.msg))?;
        Ok(Self {
            name: name.to_owned(),
            role,
            pods,
        })
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is for.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether it may report, and attach as, a pod of this id. A slave speaks for itself alone; a master relays what any pod
    /// says.
    pub fn speaks_for(&self, id: &str) -> bool {
        match self.role {
            Role::Slave => match &self.pods {
                Some(pattern) => pattern.matches(id),
                None => self.name == id,
            },
            Role::Peer => true,
            Role::Reader | Role::Operator => false,
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slave_speaks_for_itself_and_a_reader_for_nobody() {
        let of = |name, role| Principal::new(name, role).unwrap();
        let one = of("web-1", Role::Slave);
        assert!(one.speaks_for("web-1"));
        for other in ["web-11", "web-", "WEB-1", "", "db-1"] {
            assert!(!one.speaks_for(other), "{other}");
        }
        let many = of("web-*", Role::Slave);
        assert!(many.speaks_for("web-1") && many.speaks_for("web-"));
        assert!(!many.speaks_for("db-1") && !many.speaks_for("xweb-1"));
        assert!(of("m1", Role::Peer).speaks_for("web-1"));
        // A pattern is one for a slave only.
        for role in [Role::Reader, Role::Operator] {
            assert!(!of("*", role).speaks_for("web-1"));
        }
    }

    #[test]
    fn names_that_no_line_of_a_log_can_hold_are_refused() {
        for name in ["", "a b", "a\nb", "ä", "a\u{7f}", &"x".repeat(254)] {
            assert_eq!(Principal::new(name, Role::Reader), Err(BadName::Form));
        }
        let open = Principal::new("web-[", Role::Slave);
        assert!(matches!(open, Err(BadName::Pattern(_))), "{open:?}");
    }

    #[test]
    fn a_role_is_read_as_it_is_written() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
            let organization = format!("kontrol:{role}");
            assert_eq!(Role::of_organization(&organization), Some(Ok(role)));
        }
        assert_eq!(Role::of_organization("Example Ltd"), None);
        assert!(Role::of_organization("kontrol:root").unwrap().is_err());
        assert!("Peer".parse::<Role>().is_err());
    }
}
