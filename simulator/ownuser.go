package simulator

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// AsUser lets the agent of the till run as a user of its own, who has no
// capability and can get none, as tillward-agent.service has it. All that is
// the box becomes the user's, and what the image brings is copied into it. The
// till must be off, and the simulator root.
func (t *Till) AsUser(uid int) error {
	if err := t.ownImage(); err != nil {
		return fmt.Errorf("%s: image: %w", t.Name, err)
	}
	err := filepath.WalkDir(t.dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, uid) // #nosec G122 -- nobody else gets at this folder yet
	})
	if err != nil {
		return fmt.Errorf("%s: %w", t.Name, err)
	}
	user := strconv.Itoa(uid)
	t.under = []string{
		"setpriv", "--reuid=" + user, "--regid=" + user, "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--pdeathsig=KILL",
	}
	return nil
}

// ownImage copies what the image brings, which lies where only the simulator
// gets at it.
func (t *Till) ownImage() error {
	image := filepath.Join(t.dir, "image")
	if err := os.MkdirAll(image, 0o700); err != nil {
		return err
	}
	t.roots = t.service.roots()
	for name, file := range map[string]*string{"roots.pem": &t.roots, "root.json": &t.rootTUF, "seal.pem": &t.sealKey, "tillward-agent": &t.agent} {
		b, err := os.ReadFile(*file)
		if err != nil {
			return err
		}
		*file = filepath.Join(image, name)
		if err := os.WriteFile(*file, b, 0o700); err != nil { // #nosec G306 -- one of them is run
			return err
		}
	}
	return t.configure()
}

// PID is the process of the agent that runs now, or 0.
func (t *Till) PID() int { return t.proc.pid() }
