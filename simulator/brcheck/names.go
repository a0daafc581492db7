package brcheck

import (
	"bufio"
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// names holds the verified names: for each that our tree uses, its kind and the
// releases that have it. They are facts read from the sources, by Learn.
//
//go:embed names/*.txt
var names embed.FS

// known is a list of names of one program.
type known map[string]fact

type fact struct {
	kind string   // bool, tristate, string, int or hex
	in   []string // releases
}

func readNames(name string) (known, error) {
	raw, err := names.ReadFile("names/" + name + ".txt")
	if err != nil {
		return nil, err
	}
	list := known{}
	s := bufio.NewScanner(bytes.NewReader(raw))
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 3 || f[0] == "#" {
			continue
		}
		list[f[0]] = fact{f[1], f[2:]}
	}
	return list, s.Err()
}

// check says what is wrong with settings by what is known of their names.
func (list known) check(c config) []string {
	wrong := slices.Clone(c.wrong)
	seen := map[string]bool{}
	for _, s := range c.lines {
		f, ok := list[s.name]
		switch {
		case seen[s.name]:
			wrong = append(wrong, fmt.Sprintf("%s: says %s twice", c.file, s.name))
		case !ok:
			wrong = append(wrong, fmt.Sprintf("%s: %s is on no list of verified names: misspelt, or new and to be learned", c.file, s.name))
		case !f.takes(s.value):
			wrong = append(wrong, fmt.Sprintf("%s: %s is %s and not %s", c.file, s.name, f.kind, s.value))
		}
		seen[s.name] = true
	}
	return wrong
}

var shapes = map[string]*regexp.Regexp{
	"bool":     regexp.MustCompile(`^[yn]$`),
	"tristate": regexp.MustCompile(`^[ynm]$`),
	"string":   regexp.MustCompile(`^".*"$`),
	"int":      regexp.MustCompile(`^-?[0-9]+$`),
	"hex":      regexp.MustCompile(`^0x[0-9a-fA-F]+$`),
}

func (f fact) takes(value string) bool {
	return shapes[f.kind] != nil && shapes[f.kind].MatchString(value)
}

// Sources are the trees that Learn reads, by release as the lists call it:
// "2025.02.16", "6.12". BusyBox is known by Buildroot's configuration of it.
type Sources struct{ Buildroot, Linux map[string]string }

// Learn writes the lists of names that the external tree in dir uses into the
// folder out. What it cannot find in a source is an error.
func Learn(dir, out string, from Sources) error {
	x, err := open(dir)
	if err != nil {
		return err
	}
	need := map[string]bool{}
	for _, c := range x.fragments {
		for _, s := range c.lines {
			need[s.name] = true
		}
	}
	own := x.own()
	for _, s := range x.menu.symbols {
		for _, r := range s.refs {
			need[r] = true
		}
	}
	maps.DeleteFunc(need, func(n string, _ bool) bool { return own[n].kind != "" })
	var missing []string
	if err := learn(filepath.Join(out, "buildroot.txt"), need, from.Buildroot, "", &missing, "Config.in", "Config.in.*", "*.Config.in"); err != nil {
		return err
	}
	kernel, busybox := map[string]bool{}, map[string]bool{}
	for _, file := range x.kernelFragments() {
		c, err := x.config(file)
		if err != nil {
			return err
		}
		for _, s := range c.lines {
			kernel[s.name] = true
		}
	}
	if err := learn(filepath.Join(out, "linux.txt"), kernel, from.Linux, "CONFIG_", &missing, "Kconfig", "Kconfig.*", "Kconfig-*"); err != nil {
		return err
	}
	c, err := x.config(busyboxFragment)
	if err != nil {
		return err
	}
	for _, s := range c.lines {
		busybox[s.name] = true
	}
	found := known{}
	for release, tree := range from.Buildroot {
		raw, err := os.ReadFile(filepath.Join(tree, "package/busybox/busybox.config"))
		if err != nil {
			return err
		}
		for _, s := range parseConfig("busybox.config", string(raw)).lines {
			found.add(s.name, kindOf(s.value), release)
		}
	}
	if err := found.write(filepath.Join(out, "busybox.txt"), busybox, slices.Collect(maps.Keys(from.Buildroot)), &missing); err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("names in no source:\n%s", strings.Join(missing, "\n"))
	}
	return nil
}

func kindOf(value string) string {
	for _, kind := range []string{"bool", "string", "hex", "int"} {
		if shapes[kind].MatchString(value) {
			return kind
		}
	}
	return "bool"
}

func (list known) add(name, kind, release string) {
	f := list[name]
	if f.kind == "" || kind != "" {
		f.kind = kind
	}
	if !slices.Contains(f.in, release) {
		f.in = append(f.in, release)
	}
	list[name] = f
}

var reTyped = regexp.MustCompile(`^\s+(?:def_)?(bool|tristate|string|int|hex)\b`)

// learn reads all menus of the trees and writes what they say of need.
func learn(file string, need map[string]bool, trees map[string]string, prefix string, missing *[]string, patterns ...string) error {
	found := known{}
	for release, tree := range trees {
		root := os.DirFS(tree)
		err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || !slices.ContainsFunc(patterns, func(p string) bool { ok, _ := path.Match(p, path.Base(name)); return ok }) {
				return err
			}
			raw, err := fs.ReadFile(root, name)
			if err != nil {
				return err
			}
			now := ""
			for line := range strings.Lines(string(raw)) {
				word, rest, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
				if word == "config" || word == "menuconfig" {
					now = prefix + strings.TrimSpace(rest)
				} else if m := reTyped.FindStringSubmatch(line); m != nil && now != "" && need[now] {
					found.add(now, m[1], release)
					now = ""
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return found.write(file, need, slices.Collect(maps.Keys(trees)), missing)
}

func (list known) write(file string, need map[string]bool, releases []string, missing *[]string) error {
	slices.Sort(releases)
	b := bytes.NewBufferString("# Names that our tree uses, their kinds and the releases that have them. Made by `tillward-brcheck --learn`.\n")
	for _, name := range slices.Sorted(maps.Keys(need)) {
		f, ok := list[name]
		if !ok {
			*missing = append(*missing, name)
			continue
		}
		slices.Sort(f.in)
		if !slices.Equal(f.in, releases) {
			*missing = append(*missing, fmt.Sprintf("%s: only in %s", name, f.in))
		}
		fmt.Fprintf(b, "%s %s %s\n", name, f.kind, strings.Join(f.in, " "))
	}
	return os.WriteFile(file, b.Bytes(), 0o644) //nolint:gosec // a source file like the others
}
