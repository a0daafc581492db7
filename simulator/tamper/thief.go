package tamper

import (
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/tillward/tillward/provisioning/trust"
)

func itoa(n int) string { return strconv.Itoa(n) }

// fork is metadata of the attacker's own, which begins as what is published.
type fork struct{ dir string } // holds metadata/

func (s *siege) fork() (fork, error) {
	dir, err := os.MkdirTemp(s.world.Dir(), "fork-")
	if err != nil {
		return fork{}, err
	}
	f := fork{dir}
	s.mu.Lock() // nothing is published meanwhile
	defer s.mu.Unlock()
	return f, os.CopyFS(f.meta(), os.DirFS(filepath.Join(s.service, "artifacts", "metadata")))
}

func (f fork) meta() string { return filepath.Join(f.dir, "metadata") }

func (f fork) file(name string) string { return filepath.Join(f.meta(), name) }

// newest names the newest file of a role, and its version.
func (f fork) newest(role string) (file string, version int64, err error) {
	if role == trust.RoleTimestamp {
		return f.file("timestamp.json"), 0, nil
	}
	for v := int64(1); ; v++ {
		at := f.file(trust.MetadataFile(role, v))
		if _, err := os.Stat(at); err == nil {
			file, version = at, v
		} else if version > 0 || v > 1<<10 {
			break
		}
	}
	if file == "" {
		return "", 0, fmt.Errorf("%s: no metadata of %s", f.dir, role)
	}
	return file, version, nil
}

// forge changes metadata and signs it with the keys that the attacker has.
func forge[T metadata.Roles](from, to string, change func(m *metadata.Metadata[T]) error, keys ...ed25519.PrivateKey) error {
	b, err := os.ReadFile(from) // #nosec G304 -- the scenario's own folder
	if err != nil {
		return err
	}
	m := &metadata.Metadata[T]{}
	if err := json.Unmarshal(b, m); err != nil {
		return err
	}
	if err := change(m); err != nil {
		return err
	}
	m.ClearSignatures()
	for _, k := range keys {
		s, err := signature.LoadSigner(k, crypto.Hash(0))
		if err != nil {
			return err
		}
		if _, err := m.Sign(s); err != nil {
			return err
		}
	}
	return m.ToFile(to, true)
}

type targetsOf = metadata.Metadata[metadata.TargetsType]

// role forges the newest metadata of a role in its place.
func (f fork) role(role string, change func(m *targetsOf) error, keys ...ed25519.PrivateKey) error {
	file, _, err := f.newest(role)
	if err != nil {
		return err
	}
	return forge(file, file, change, keys...)
}

// reseal lets the holder of the online key list what he likes, in a snapshot
// and timestamp that count as many versions on.
func (f fork) reseal(by int64, online ed25519.PrivateKey, change func(listed map[string]*metadata.MetaFiles)) error {
	file, version, err := f.newest(trust.RoleSnapshot)
	if err != nil {
		return err
	}
	version += by
	err = forge(file, f.file(trust.MetadataFile(trust.RoleSnapshot, version)), func(m *metadata.Metadata[metadata.SnapshotType]) error {
		m.Signed.Version = version
		change(m.Signed.Meta)
		return nil
	}, online)
	if err != nil {
		return err
	}
	stamp := f.file("timestamp.json")
	return forge(stamp, stamp, func(m *metadata.Metadata[metadata.TimestampType]) error {
		m.Signed.Version += by
		m.Signed.Meta["snapshot.json"] = metadata.MetaFile(version)
		return nil
	}, online)
}

// other is the description of a target with another content.
func other(m *targetsOf, path string) error {
	info, ok := m.Signed.Targets[path]
	if !ok {
		return fmt.Errorf("%s: %w", path, errNoRelease)
	}
	info.Hashes["sha256"][0] ^= 1
	return nil
}

// named puts a target into metadata that has none of that name, described as
// another one is.
func named(m *targetsOf, path string, like *metadata.TargetFiles) {
	info := *like
	info.Path = path
	m.Signed.Targets[path] = &info
}

// stamped is the version of the timestamp in a folder of metadata.
func stamped(dir string) (int64, error) {
	m, err := metadata.Timestamp().FromFile(filepath.Join(dir, "timestamp.json"))
	if err != nil {
		return 0, err
	}
	return m.Signed.Version, nil
}
