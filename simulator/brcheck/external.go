package brcheck

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// here is how configurations name the tree they belong to.
const here = "$(BR2_EXTERNAL_TILLWARD_PATH)/"

// external is a BR2_EXTERNAL tree.
type external struct {
	dir        string
	name, desc string
	menu       *menu
	packages   []string          // folders with a .mk
	fragments  map[string]config // configs/fragments/NAME.config
	defconfigs map[string]config // configs/NAME_defconfig
	mk         string            // external.mk
}

// config is a file of lines NAME=VALUE and "# NAME is not set".
type config struct {
	file  string
	text  string
	lines []setting
	wrong []string // lines that are neither
}

type setting struct{ name, value string } // value is "n" where it is not set

func (s setting) String() string {
	if s.value == "n" {
		return "# " + s.name + " is not set"
	}
	return s.name + "=" + s.value
}

var (
	reSet   = regexp.MustCompile(`^([A-Z][A-Za-z0-9_]*)=(.+)$`)
	reUnset = regexp.MustCompile(`^# ([A-Z][A-Za-z0-9_]*) is not set$`)
)

func open(dir string) (*external, error) {
	x := &external{dir: dir, fragments: map[string]config{}, defconfigs: map[string]config{}}
	desc, err := x.read("external.desc")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(desc) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "name":
			x.name = value
		case "desc":
			x.desc = value
		}
	}
	if x.mk, err = x.read("external.mk"); err != nil {
		return nil, err
	}
	if x.menu, err = parseMenu(x, "Config.in"); err != nil {
		return nil, err
	}
	mks, err := filepath.Glob(filepath.Join(dir, "package/*/*.mk"))
	if err != nil {
		return nil, err
	}
	for _, mk := range mks {
		x.packages = append(x.packages, filepath.Base(filepath.Dir(mk)))
	}
	if x.fragments, err = x.configs("configs/fragments/*.config", ".config"); err != nil {
		return nil, err
	}
	x.defconfigs, err = x.configs("configs/*_defconfig", "_defconfig")
	return x, err
}

func (x *external) read(name string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(x.dir, filepath.FromSlash(name)))
	return string(raw), err
}

func (x *external) exists(name string) bool {
	_, err := os.Stat(filepath.Join(x.dir, filepath.FromSlash(name)))
	return err == nil
}

func (x *external) configs(pattern, suffix string) (map[string]config, error) {
	files, err := filepath.Glob(filepath.Join(x.dir, filepath.FromSlash(pattern)))
	if err != nil {
		return nil, err
	}
	found := map[string]config{}
	for _, file := range files {
		name, err := filepath.Rel(x.dir, file)
		if err != nil {
			return nil, err
		}
		if found[strings.TrimSuffix(filepath.Base(file), suffix)], err = x.config(filepath.ToSlash(name)); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func (x *external) config(name string) (config, error) {
	text, err := x.read(name)
	return parseConfig(name, text), err
}

func parseConfig(file, text string) config {
	c := config{file: file, text: text}
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, "\n")
		if m := reSet.FindStringSubmatch(line); m != nil {
			c.lines = append(c.lines, setting{m[1], m[2]})
		} else if m := reUnset.FindStringSubmatch(line); m != nil {
			c.lines = append(c.lines, setting{m[1], "n"})
		} else if line != "" && !strings.HasPrefix(line, "# ") {
			c.wrong = append(c.wrong, fmt.Sprintf("%s:%d: neither a setting nor a comment: %s", file, n, line))
		}
	}
	return c
}

// value returns what c says of name, without quotes.
func (c config) value(name string) string {
	for _, s := range c.lines {
		if s.name == name {
			return strings.Trim(s.value, `"`)
		}
	}
	return ""
}

// ours lists the files that a setting names in this tree.
func (s setting) ours() []string {
	var files []string
	for word := range strings.FieldsSeq(strings.Trim(s.value, `"`)) {
		if name, ok := strings.CutPrefix(word, here); ok {
			files = append(files, name)
		}
	}
	return files
}

// scripts are the shell scripts of the tree, by their first line or their name.
func (x *external) scripts() ([]string, error) {
	var found []string
	root := os.DirFS(x.dir)
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		raw, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		first, _, _ := strings.Cut(string(raw), "\n")
		if path.Ext(name) == ".sh" || regexp.MustCompile(`^#!.*\b(sh|bash|ash|dash)\b`).MatchString(first) {
			found = append(found, name)
		}
		return nil
	})
	slices.Sort(found)
	return found, err
}
