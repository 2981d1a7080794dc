//! An image layout of the OCI, as a directory or as an archive, which `ctr`, `podman`, `skopeo` and `docker` load
//! (github.com/opencontainers/image-spec: `image-layout.md`, `manifest.md`, `config.md`).
//!
//! The same content gives the same bytes: nothing has the time or the owner of a file of this machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};

use super::{Arch, Origin};
use crate::hash::sha256;

/// What goes into an image.
pub(super) struct Content<'a> {
    /// The agent.
    pub(super) program: &'a [u8],
    pub(super) arch: Arch,
    pub(super) origin: &'a Origin,
}

/// An image for one processor.
#[derive(Clone)]
pub(super) struct Image {
    manifest: Descriptor,
    blobs: Blobs,
}

impl Image {
    /// The image with this content.
    pub(super) fn new(content: &Content<'_>) -> Result<Self> {
        let &Content { program, arch, origin } = content;
        let mut blobs = Blobs::default();
        let tar = layer(program)?;
        let uncompressed = format!("sha256:{}", sha256(&tar));
        let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
        gzip.write_all(&tar)?;
        let layer = blobs.add("application/vnd.oci.image.layer.v1.tar+gzip", gzip.finish()?);

        let platform = json!({ "architecture": arch.name(), "os": "linux" });
        let mut config = json!({
            "architecture": arch.name(),
            "os": "linux",
            "config": {
                "Entrypoint": [format!("/{PROGRAM}")],
                // By number: there is no file that would know names.
                "User": "0:0",
                "WorkingDir": "/",
                "Labels": labels(origin),
            },
            "rootfs": { "type": "layers", "diff_ids": [uncompressed] },
            "history": [{ "created_by": "cargo xtask image" }],
        });
        if let Some(created) = &origin.created {
            config["created"] = json!(created);
            config["history"][0]["created"] = json!(created);
        }
        let config = blobs.add("application/vnd.oci.image.config.v1+json", bytes(&config));

        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.0,
            "layers": [layer.0],
        });
        let manifest = blobs.add(MANIFEST, bytes(&manifest)).with("platform", platform);
        Ok(Self { manifest, blobs })
    }
}

/// The files of a layout.
pub(super) struct Layout {
    image: Descriptor,
    files: BTreeMap<String, Vec<u8>>,
}

impl Layout {
    /// A layout with one image of that name: this one, or a choice of these.
    pub(super) fn new(name: &str, images: &[Image]) -> Self {
        let mut blobs = Blobs::default();
        for image in images {
            blobs.0.extend(image.blobs.0.clone());
        }
        let image = match images {
            [image] => image.manifest.clone(),
            images => blobs.add(INDEX, bytes(&index(images.iter().map(|image| &image.manifest)))),
        };
        let tag = name.rsplit_once(':').map_or(name, |(_, tag)| tag);
        // The standard has a place for the tag only; containerd imports an image as what the other one says.
        let names = json!({ "io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag });
        let image = image.with("annotations", names);
        let blobs = blobs.0.into_iter();
        let mut files: BTreeMap<_, _> =
            blobs.map(|(digest, bytes)| (format!("blobs/sha256/{digest}"), bytes)).collect();
        files.insert("index.json".to_owned(), bytes(&index([&image])));
        files.insert("oci-layout".to_owned(), bytes(&json!({ "imageLayoutVersion": "1.0.0" })));
        Self { image, files }
    }

    /// What the image can be pinned by.
    pub(super) fn digest(&self) -> &str {
        self.image.0["digest"].as_str().unwrap_or_default()
    }

    /// Writes the layout into a directory, which is made, or whose former layout is overwritten.
    pub(super) fn write_directory(&self, directory: &Path) -> Result<()> {
        for (name, bytes) in &self.files {
            let path = directory.join(name);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Writes the layout as a tar.
    pub(super) fn write_archive(&self, to: &mut impl Write) -> Result<()> {
        let mut archive = tar::Builder::new(to);
        for (name, bytes) in &self.files {
            append(&mut archive, name, 0o644, bytes)?;
        }
        archive.finish()?;
        Ok(())
    }
}

/// What stands for a blob in others: media type, size, digest, and more if need be.
#[derive(Clone)]
struct Descriptor(Value);

impl Descriptor {
    fn with(mut self, field: &str, value: Value) -> Self {
        self.0[field] = value;
        self
    }
}

/// Content by digest.
#[derive(Clone, Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    fn add(&mut self, media_type: &str, bytes: Vec<u8>) -> Descriptor {
        let digest = sha256(&bytes);
        let descriptor =
            json!({ "mediaType": media_type, "size": bytes.len(), "digest": format!("sha256:{digest}") });
        self.0.insert(digest, bytes);
        Descriptor(descriptor)
    }
}

fn index<'a>(images: impl IntoIterator<Item = &'a Descriptor>) -> Value {
    let images: Vec<_> = images.into_iter().map(|image| &image.0).collect();
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": images })
}

fn bytes(document: &Value) -> Vec<u8> {
    document.to_string().into_bytes()
}

/// The root file system. Mount points are made by the runtime, before it makes the root read-only.
fn layer(program: &[u8]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, PROGRAM, 0o755, program)?;
    Ok(archive.into_inner()?)
}

/// Adds a file of root's, from the beginning of time.
fn append(archive: &mut tar::Builder<impl Write>, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(u64::try_from(bytes.len())?);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, name, bytes)?;
    Ok(())
}

fn labels(origin: &Origin) -> Value {
    let mut labels = json!({
        "org.opencontainers.image.title": "Sluice",
        "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
        "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
    });
    if let Some(revision) = &origin.revision {
        labels["org.opencontainers.image.revision"] = json!(revision);
    }
    labels
}

const PROGRAM: &str = "sluice";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use oci_spec::image::{
        ANNOTATION_REF_NAME, ANNOTATION_REVISION, ANNOTATION_VERSION, Arch as OciArch, Descriptor,
        ImageConfiguration, ImageIndex, ImageManifest, MediaType, OciLayout, Os,
    };

    use super::*;

    const PROGRAM_BYTES: &[u8] = b"\x7fELF and so on";

    fn layout(archs: &[Arch]) -> Layout {
        let origin = Origin {
            revision: Some("0123456789abcdef0123456789abcdef01234567".to_owned()),
            created: Some("2026-01-02T03:04:05Z".to_owned()),
        };
        let image = |&arch: &Arch| Image::new(&Content { program: PROGRAM_BYTES, arch, origin: &origin });
        let images: Vec<_> = archs.iter().map(|arch| image(arch).unwrap()).collect();
        Layout::new("registry.example:5000/net/sluice:v1", &images)
    }

    /// What a descriptor stands for, if size and digest are right.
    fn blob<'a>(layout: &'a Layout, descriptor: &Descriptor) -> &'a [u8] {
        let bytes = &layout.files[&format!("blobs/sha256/{}", descriptor.digest().digest())];
        assert_eq!(u64::try_from(bytes.len()).unwrap(), descriptor.size());
        assert_eq!(format!("sha256:{}", sha256(bytes)), descriptor.digest().to_string());
        bytes
    }

    fn index(layout: &Layout) -> ImageIndex {
        let marker = OciLayout::from_reader(&layout.files["oci-layout"][..]).unwrap();
        assert_eq!(marker.image_layout_version(), "1.0.0");
        ImageIndex::from_reader(&layout.files["index.json"][..]).unwrap()
    }

    /// Checks an image for one processor.
    fn expect_image(layout: &Layout, descriptor: &Descriptor, arch: OciArch) {
        assert_eq!(descriptor.media_type(), &MediaType::ImageManifest);
        assert_eq!(descriptor.platform().as_ref().unwrap().architecture(), &arch);
        let manifest = ImageManifest::from_reader(blob(layout, descriptor)).unwrap();
        let configuration = ImageConfiguration::from_reader(blob(layout, manifest.config())).unwrap();
        assert_eq!((configuration.architecture(), configuration.os()), (&arch, &Os::Linux));
        assert_eq!(configuration.created().as_deref(), Some("2026-01-02T03:04:05Z"));
        let config = configuration.config().as_ref().unwrap();
        assert_eq!(config.entrypoint().as_deref(), Some(&["/sluice".to_owned()][..]));
        assert_eq!(config.user().as_deref(), Some("0:0"));
        let labels = config.labels().as_ref().unwrap();
        assert_eq!(labels[ANNOTATION_VERSION], env!("CARGO_PKG_VERSION"));
        assert_eq!(labels[ANNOTATION_REVISION].len(), 40);

        let [layer] = &manifest.layers()[..] else { panic!("one layer") };
        let mut tar = Vec::new();
        GzDecoder::new(blob(layout, layer)).read_to_end(&mut tar).unwrap();
        let uncompressed = format!("sha256:{}", sha256(&tar));
        assert_eq!(configuration.rootfs().diff_ids(), &[uncompressed]);
        let mut archive = tar::Archive::new(&tar[..]);
        let mut entries = archive.entries().unwrap();
        let mut program = entries.next().unwrap().unwrap();
        assert_eq!(program.path().unwrap(), Path::new("sluice"));
        let header = program.header();
        let owner = (header.uid().unwrap(), header.gid().unwrap());
        assert_eq!((header.mode().unwrap(), owner, header.mtime().unwrap()), (0o755, (0, 0), 0));
        let mut bytes = Vec::new();
        program.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, PROGRAM_BYTES);
        drop(program);
        assert!(entries.next().is_none(), "nothing else is in the image");
    }

    #[test]
    fn an_image_is_the_program_and_what_says_how_to_run_it() {
        let layout = layout(&[Arch::Amd64]);
        let index = index(&layout);
        let [image] = &index.manifests()[..] else { panic!("one image") };
        assert_eq!(image.digest().to_string(), layout.digest());
        let names = image.annotations().as_ref().unwrap();
        assert_eq!(names["io.containerd.image.name"], "registry.example:5000/net/sluice:v1");
        assert_eq!(names[ANNOTATION_REF_NAME], "v1");
        expect_image(&layout, image, OciArch::Amd64);
        // Layer, configuration, manifest; index and marker.
        assert_eq!(layout.files.len(), 5);
    }

    #[test]
    fn images_for_several_processors_are_one_image_to_choose_from() {
        let layout = layout(&[Arch::Amd64, Arch::Arm64]);
        let index = index(&layout);
        let [choice] = &index.manifests()[..] else { panic!("one image") };
        assert_eq!(choice.media_type(), &MediaType::ImageIndex);
        let choice = ImageIndex::from_reader(blob(&layout, choice)).unwrap();
        let [amd64, arm64] = &choice.manifests()[..] else { panic!("two processors") };
        expect_image(&layout, amd64, OciArch::Amd64);
        expect_image(&layout, arm64, OciArch::ARM64);
    }

    #[test]
    fn the_same_content_gives_the_same_bytes_as_archive_and_as_directory() {
        let archive = || {
            let mut bytes = Vec::new();
            layout(&[Arch::Amd64, Arch::Arm64]).write_archive(&mut bytes).unwrap();
            bytes
        };
        assert!(archive() == archive());
        let directory = std::env::temp_dir().join(format!("xtask-layout-{}", std::process::id()));
        layout(&[Arch::Amd64]).write_directory(&directory).unwrap();
        for (name, bytes) in &layout(&[Arch::Amd64]).files {
            assert!(fs::read(directory.join(name)).unwrap() == *bytes, "{name}");
        }
        fs::remove_dir_all(directory).unwrap();
    }
}
