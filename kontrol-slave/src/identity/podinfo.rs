//! The Kubernetes downward-API folder: `labels` and `annotations` (lines of `key="value"`, the value quoted as Go
//! does) and `name`. Each file may be absent.
//!
//! Annotations are for everybody, so some are not for us: what is too long or too many for a keepalive is left out, which is
//! told, and so is `kubectl.kubernetes.io/last-applied-configuration`, a copy of the whole manifest that may hold secrets.
//! Edits of a running pod arrive by a swap of the folder's `..data` link, and are followed.

use super::{Given, Identity, Labels};
use kontrol_core::limits::{
    MAX_ANNOTATION_BYTES, MAX_ANNOTATIONS_BYTES, MAX_LABEL_NAME_BYTES, MAX_LABELS, annotations_size,
};
use kontrol_runtime::{
    command_line::Mistake,
    folder::{Changes, Content, Hint, Reader, read_now},
};
use std::path::{Path, PathBuf};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The annotation that names the masters when no flag does.
pub const MASTERS: &str = "kontrol/master";
/// What the Python Kontrol called it. It counts where the other is not there.
pub const CLASSIC_MASTERS: &str = "kontrol.unity3d.com/master";
/// The annotation that is never passed on.
const MANIFEST: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Largest file of the folder, in bytes. Kubernetes itself stops at 256 KiB of annotations.
const MAX_BYTES: usize = 1024 * 1024;
/// The files of the folder.
const FILES: [&str; 3] = ["labels", "annotations", "name"];

/// What the folder says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Podinfo {
    /// The pod's labels.
    pub labels: Labels,
    /// The pod's annotations, without the one that is never passed on.
    pub annotations: Labels,
    /// The pod's name.
    pub name: Option<String>,
}

/// A folder that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodinfoError {
    /// It is no folder.
    #[error("{} is not a folder", .0.display())]
    NoFolder(PathBuf),
    /// One of its files cannot be read.
    #[error("cannot read {}: {reason}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A line is not `key="value"`.
    #[error("line {line} of `{file}` is not key=\"value\" as Kubernetes writes it")]
    Line {
        /// The file.
        file: &'static str,
        /// The number of the line, from 1.
        line: usize,
    },
}

impl Podinfo {
    /// Understands the texts of the folder's files; an absent file is an empty text.
    pub fn parse(labels: &str, annotations: &str, name: &str) -> Result<Self, PodinfoError> {
        let mut annotations = parse_lines("annotations", annotations)?;
        annotations.remove(MANIFEST);
        Ok(Self {
            labels: parse_lines("labels", labels)?,
            annotations,
            name: Some(name.trim().to_owned()).filter(|name| !name.is_empty()),
        })
    }

    /// The annotations that a keepalive can hold, with those that flags give, which win; and the names of those of the
    /// folder that are left out.
    pub fn annotations_beside(&self, given: &Labels) -> (Labels, Vec<String>) {
        let mut all = given.clone();
        let mut size = annotations_size(given);
        let mut left_out = Vec::new();
        let masters = self.annotations.get_key_value(MASTERS);
        let rest = self.annotations.iter().filter(|(name, _)| *name != MASTERS);
        for (name, value) in masters.into_iter().chain(rest) {
            if given.contains_key(name) {
                continue;
            }
            let alone = Labels::from([(name.clone(), value.clone())]);
            let more = annotations_size(&alone);
            if all.len() < MAX_LABELS
                && name.len() <= MAX_LABEL_NAME_BYTES
                && value.len() <= MAX_ANNOTATION_BYTES
                && size + more <= MAX_ANNOTATIONS_BYTES
            {
                size += more;
                all.extend(alone);
            } else {
                left_out.push(name.clone());
            }
        }
        (all, left_out)
    }

    /// Reads the folder, on this thread.
    pub fn read(folder: &Path) -> Result<Self, PodinfoError> {
        Self::from_contents(folder, &contents(folder))
    }

    fn from_contents(folder: &Path, contents: &[Content; 3]) -> Result<Self, PodinfoError> {
        if !folder.is_dir() {
            return Err(PodinfoError::NoFolder(folder.to_owned()));
        }
        let text = |index: usize| {
            let fail = |reason: String| PodinfoError::Io {
                path: folder.join(FILES[index]),
                reason,
            };
            match &contents[index] {
                Content::Missing => Ok(""),
                Content::Failed(error) => Err(fail(error.to_string())),
                Content::Read { bytes, .. } if bytes.len() > MAX_BYTES => {
                    Err(fail("it is larger than 1 MiB".into()))
                }
                Content::Read { bytes, .. } => {
                    std::str::from_utf8(bytes).map_err(|error| fail(error.to_string()))
                }
            }
        };
        Self::parse(text(0)?, text(1)?, text(2)?)
    }
}

fn contents(folder: &Path) -> [Content; 3] {
    FILES.map(|file| read_now(&folder.join(file), MAX_BYTES))
}

fn parse_lines(file: &'static str, text: &str) -> Result<Labels, PodinfoError> {
    let mut labels = Labels::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = || PodinfoError::Line {
            file,
            line: index + 1,
        };
        let (name, quoted) = line.split_once('=').ok_or_else(wrong)?;
        let value = unquote(quoted.trim_end()).ok_or_else(wrong)?;
        labels.insert(name.trim().to_owned(), value);
    }
    Ok(labels)
}

/// Undoes Go's `strconv.Quote`. Bytes that were no UTF-8 come as `\x..`, and what they make is mended.
fn unquote(text: &str) -> Option<String> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        let plain = match c {
            '"' => return None,
            '\\' => match chars.next()? {
                'a' => '\x07',
                'b' => '\x08',
                'f' => '\x0c',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\x0b',
                same @ ('\\' | '"' | '\'') => same,
                'x' => {
                    bytes.push(u8::try_from(hex(&mut chars, 2)?).ok()?);
                    continue;
                }
                'u' => char::from_u32(hex(&mut chars, 4)?)?,
                'U' => char::from_u32(hex(&mut chars, 8)?)?,
                _ => return None,
            },
            c => c,
        };
        bytes.extend_from_slice(plain.encode_utf8(&mut [0; 4]).as_bytes());
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn hex(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    (0..digits).try_fold(0_u32, |number, _| {
        let digit = chars.next()?.to_digit(16)?;
        number.checked_mul(16)?.checked_add(digit)
    })
}

/// Follows the folder of a running pod, so that edited labels and annotations are reported.
#[derive(Debug)]
pub struct PodinfoTask {
    folder: PathBuf,
    changes: Changes,
    given: Given,
    host: String,
    sender: watch::Sender<Identity>,
    reader: Reader,
    contents: [Content; 3],
    /// The trouble that was said last.
    said: Option<String>,
    /// The annotations that were told to be left out.
    left_out: Vec<String>,
}

impl PodinfoTask {
    /// `first` is the identity that the folder made when it was read at the start.
    pub fn new(
        folder: &Path,
        given: Given,
        host: String,
        first: Identity,
    ) -> (watch::Receiver<Identity>, Self) {
        let (sender, receiver) = watch::channel(first);
        let task = Self {
            folder: folder.to_owned(),
            changes: Changes::of_folder(folder),
            given,
            host,
            sender,
            reader: Reader::new(1),
            // Not read yet by this task, so that an edit since the start is not missed.
            contents: [Content::Missing, Content::Missing, Content::Missing],
            said: None,
            left_out: Vec::new(),
        };
        (receiver, task)
    }

    /// Follows the folder until the token is cancelled.
    pub async fn run(mut self, token: CancellationToken) {
        let work = async {
            loop {
                self.look().await;
                while self.changes.next().await == Hint::Tick && self.is_current().await {}
            }
        };
        token.run_until_cancelled(work).await;
    }

    async fn is_current(&self) -> bool {
        for (file, content) in FILES.iter().zip(&self.contents) {
            let path = self.folder.join(file);
            if !content.is_current(&path, &self.reader).await {
                return false;
            }
        }
        true
    }

    /// Reads the folder and publishes the identity, if it is news; trouble keeps the last one and is said once.
    async fn look(&mut self) {
        let folder = self.folder.clone();
        let read = self.reader.look(move || {
            let contents = contents(&folder);
            (Podinfo::from_contents(&folder, &contents), contents)
        });
        let podinfo = match read.await {
            Ok((podinfo, contents)) => {
                self.contents = contents;
                podinfo.map_err(|error| Mistake::new("podinfo", error).to_string())
            }
            Err(error) => Err(Mistake::new("podinfo", error).to_string()),
        };
        let identity = podinfo.and_then(|podinfo| {
            self.tell_left_out(&podinfo);
            let identity = self.given.identity(&podinfo, &self.host);
            identity.map_err(|mistakes| {
                let lines: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
                lines.join("; ")
            })
        });
        match identity {
            Ok(identity) => {
                self.said = None;
                let changed = self.sender.send_if_modified(|old| {
                    let news = *old != identity;
                    *old = identity;
                    news
                });
                if changed {
                    tracing::info!(folder = %self.folder.display(), "the pod's labels or annotations changed");
                }
            }
            Err(reason) if self.said.as_ref() != Some(&reason) => {
                tracing::warn!("{reason}; the pod goes on reporting what it was before");
                self.said = Some(reason);
            }
            Err(_) => {}
        }
    }

    fn tell_left_out(&mut self, podinfo: &Podinfo) {
        let (_, left_out) = podinfo.annotations_beside(&self.given.annotations);
        if left_out != self.left_out && !left_out.is_empty() {
            let names = left_out.join(", ");
            tracing::warn!(
                "annotations that are not reported, for a keepalive holds {MAX_LABELS} with {MAX_ANNOTATION_BYTES} bytes each: {names}"
            );
        }
        self.left_out = left_out;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{fs, time::Duration};

    const LABELS: &str = "app=\"web\"\nrole=\"front\"\n";

    #[test]
    fn the_files_of_kubernetes_are_read() {
        let podinfo = Podinfo::parse(
            LABELS,
            "kontrol/master=\"m1|m2\"\nnote=\"a \\\"b\\\" \\\\ c\\n= \\u00e9\\U0001f600\\xff\"\n",
            "web-7d9f\n",
        )
        .unwrap();
        assert_eq!(podinfo.labels["role"], "front");
        assert_eq!(podinfo.annotations[MASTERS], "m1|m2");
        assert_eq!(
            podinfo.annotations["note"],
            "a \"b\" \\ c\n= \u{e9}\u{1f600}\u{fffd}"
        );
        assert_eq!(podinfo.name.as_deref(), Some("web-7d9f"));
    }

    #[test]
    fn a_line_that_is_wrong_is_told_by_number() {
        for text in [
            "app",
            "app=web",
            "app=\"web",
            "app=\"w\"eb\"",
            "app=\"\\q\"",
            "app=\"\\u00\"",
        ] {
            let error = Podinfo::parse(&format!("role=\"x\"\n{text}\n"), "", "").unwrap_err();
            assert_eq!(
                error,
                PodinfoError::Line {
                    file: "labels",
                    line: 2
                },
                "{text}"
            );
        }
    }

    #[test]
    fn annotations_that_are_not_for_us_are_left_out_and_told() {
        let mut text = format!("{MANIFEST}=\"{{}}\"\nlong=\"{}\"\n", "x".repeat(5000));
        for index in 0..70 {
            text += &format!("a{index:02}=\"1\"\n");
        }
        text += &format!("{MASTERS}=\"m\"\n");
        let podinfo = Podinfo::parse("", &text, "").unwrap();
        let given = Labels::from([("a00".into(), "mine".into()), ("b".into(), "2".into())]);
        let (annotations, left_out) = podinfo.annotations_beside(&given);
        assert_eq!(annotations.len(), MAX_LABELS);
        assert_eq!(
            (annotations[MASTERS].as_str(), annotations["a00"].as_str()),
            ("m", "mine")
        );
        assert!(!annotations.contains_key(MANIFEST));
        let wanted: Vec<String> = (62..70)
            .map(|index| format!("a{index}"))
            .chain(["long".into()])
            .collect();
        assert_eq!(left_out, wanted);
    }

    #[test]
    fn as_many_annotations_as_the_limit_says_are_reported_whoever_names_the_masters() {
        let text = |names: &[String]| -> String {
            names.iter().map(|name| format!("{name}=\"1\"\n")).collect()
        };
        let mut names: Vec<String> = (0..MAX_LABELS)
            .map(|index| format!("a{index:02}"))
            .collect();
        for masters in [false, true] {
            if masters {
                names[0] = MASTERS.to_owned();
            }
            let podinfo = Podinfo::parse("", &text(&names), "").unwrap();
            let (annotations, left_out) = podinfo.annotations_beside(&Labels::new());
            assert_eq!((annotations.len(), left_out.len()), (MAX_LABELS, 0));
        }
    }

    #[test]
    fn whatever_annotations_the_folder_has_make_an_identity() {
        // Kubernetes counts bytes, JSON takes six for a control character.
        let value = "\\x01".repeat(MAX_ANNOTATION_BYTES);
        let text: String = (0..64)
            .map(|index| format!("a{index:02}=\"{value}\"\n"))
            .collect();
        let podinfo = Podinfo::parse(LABELS, &text, "").unwrap();
        let identity = Given::default().identity(&podinfo, "host").unwrap();
        assert!(annotations_size(&identity.annotations) <= MAX_ANNOTATIONS_BYTES);
        assert_eq!(identity.annotations.len(), 22);
    }

    #[test]
    fn names_are_as_long_as_in_kubernetes() {
        let name = format!("{}/{}", "p".repeat(253), "n".repeat(63));
        let labels = format!("{LABELS}{name}=\"x\"\n");
        let podinfo = Podinfo::parse(&labels, &format!("{name}=\"y\"\n"), "").unwrap();
        let identity = Given::default().identity(&podinfo, "host").unwrap();
        assert_eq!(
            (
                identity.labels[&name].as_str(),
                identity.annotations[&name].as_str()
            ),
            ("x", "y")
        );
        let podinfo = Podinfo::parse(&format!("{LABELS}n{name}=\"x\"\n"), "", "").unwrap();
        let mistakes = Given::default().identity(&podinfo, "host").unwrap_err();
        assert_eq!(
            mistakes[0].to_string(),
            "--labels: the name of a label is longer than 317 bytes"
        );
    }

    #[tokio::test]
    async fn an_edit_of_the_running_pod_is_followed_and_a_broken_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("labels"), LABELS).unwrap();
        let podinfo = Podinfo::read(folder.path()).unwrap();
        let given = Given::default();
        let first = given.identity(&podinfo, "host").unwrap();
        let (mut identity, task) = PodinfoTask::new(folder.path(), given, "host".into(), first);
        let token = CancellationToken::new();
        let task = tokio::spawn(task.run(token.clone()));
        let mut labelled = async |zone: &str| {
            let wait = identity
                .wait_for(|identity| identity.labels.get("zone").is_some_and(|z| z == zone));
            tokio::time::timeout(Duration::from_secs(20), wait)
                .await
                .unwrap()
                .unwrap()
                .clone()
        };
        fs::write(at("labels"), format!("{LABELS}zone=\"a\"\n")).unwrap();
        labelled("a").await;
        fs::write(at("labels"), "zone=\"b\"\n").unwrap();
        fs::write(at("next"), format!("{LABELS}zone=\"c\"\n")).unwrap();
        fs::rename(at("next"), at("labels")).unwrap();
        let now = labelled("c").await;
        assert_eq!((now.app.as_str(), now.role.as_str()), ("web", "front"));
        token.cancel();
        task.await.unwrap();
    }

    #[test]
    fn a_folder_that_is_none_is_told() {
        let error = Podinfo::read(Path::new("/nowhere/at/all")).unwrap_err();
        assert_eq!(error.to_string(), "/nowhere/at/all is not a folder");
    }

    proptest! {
        #[test]
        fn quoted_text_reads_back(text in ".{0,20}") {
            // Rust's escapes of these are Go's as well.
            let quoted: String = text.chars().map(|c| match c {
                '"' => "\\\"".into(),
                '\\' => "\\\\".into(),
                c if c.is_control() => format!("\\U{:08x}", u32::from(c)),
                c => c.to_string(),
            }).collect();
            prop_assert_eq!(unquote(&format!("\"{quoted}\"")), Some(text));
        }

        #[test]
        fn no_text_breaks_it(text in ".{0,30}") {
            let _ = Podinfo::parse(&text, &text, &text);
        }
    }
}
