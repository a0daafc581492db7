package brcheck

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const busyboxFragment = "board/tillward/busybox.fragment"

func checkDescription(_ context.Context, x *external) (string, []string, error) {
	var wrong []string
	if !regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`).MatchString(x.name) {
		wrong = append(wrong, fmt.Sprintf("external.desc: name %q", x.name))
	}
	if x.desc == "" {
		wrong = append(wrong, "external.desc: says nothing of itself")
	}
	if !strings.Contains(x.mk, "include $(sort $(wildcard $(BR2_EXTERNAL_"+x.name+"_PATH)/package/*/*.mk))") {
		wrong = append(wrong, "external.mk: does not include the packages")
	}
	return x.name, wrong, nil
}

// own are the names that our menus define.
func (x *external) own() known {
	list := known{}
	for _, s := range x.menu.symbols {
		list[s.name] = fact{kind: s.kind}
	}
	return list
}

func checkMenus(_ context.Context, x *external) (string, []string, error) {
	wrong := slices.Clone(x.menu.wrong)
	theirs, err := readNames("buildroot")
	if err != nil {
		return "", nil, err
	}
	own := x.own()
	seen := map[string]bool{}
	for _, s := range x.menu.symbols {
		bad := func(what string) { wrong = append(wrong, s.where+": "+s.name+" "+what) }
		if seen[s.name] {
			bad("is defined twice")
		}
		seen[s.name] = true
		if !strings.HasPrefix(s.name, "BR2_TILLWARD_") && !strings.HasPrefix(s.name, "BR2_PACKAGE_TILLWARD_") {
			bad("may be somebody else's: call it BR2_TILLWARD_ or BR2_PACKAGE_TILLWARD_")
		}
		if s.kind == "" {
			bad("is of no kind")
		}
		if s.prompt != "" && !s.help {
			bad("has no help")
		}
		for _, r := range s.refs {
			if _, ok := theirs[r]; own[r].kind == "" && !ok && r != "BR2_EXTERNAL_"+x.name+"_PATH" {
				bad("speaks of " + r + ", which is on no list of verified names")
			}
		}
	}
	files := []string{"Config.in", "external.mk"}
	for _, p := range x.packages {
		files = append(files, "package/"+p+"/"+p+".mk")
	}
	for _, file := range files[1:] {
		text, err := x.read(file)
		if err != nil {
			return "", nil, err
		}
		for _, r := range slices.Compact(slices.Sorted(slices.Values(reName.FindAllString(text, -1)))) {
			if strings.Contains(r, "TILLWARD") && own[r].kind == "" && r != "BR2_EXTERNAL_"+x.name+"_PATH" {
				wrong = append(wrong, file+": "+r+" is in no menu")
			}
		}
	}
	return fmt.Sprintf("%d options", len(x.menu.symbols)), wrong, nil
}

func checkPackages(_ context.Context, x *external) (string, []string, error) {
	var wrong []string
	folders, err := filepath.Glob(filepath.Join(x.dir, "package", "*"))
	if err != nil {
		return "", nil, err
	}
	for _, folder := range folders {
		name := filepath.Base(folder)
		at := path.Join("package", name)
		if !slices.Contains(x.menu.sourced, at+"/Config.in") {
			wrong = append(wrong, at+"/Config.in: nobody sources it")
		}
		if !x.exists(at + "/" + name + ".mk") {
			wrong = append(wrong, at+": has no "+name+".mk")
			continue
		}
		text, err := x.read(at + "/" + name + ".mk")
		if err != nil {
			return "", nil, err
		}
		wrong = append(wrong, checkMake(at+"/"+name+".mk", name, text)...)
	}
	for _, file := range x.menu.sourced {
		if n := len(x.menu.sourced); slices.Index(x.menu.sourced, file) != n-1-slices.Index(reversed(x.menu.sourced), file) {
			wrong = append(wrong, file+": sourced twice")
		}
	}
	return fmt.Sprintf("%s", x.packages), wrong, nil
}

func reversed(list []string) []string {
	list = slices.Clone(list)
	slices.Reverse(list)
	return list
}

var reAssign = regexp.MustCompile(`^([A-Za-z0-9_]+)\s*[:+?]?=\s*(.*)$`)

// checkMake reads a package's makefile: Buildroot's own variables would be
// anybody's, so each has the package's name in front.
func checkMake(file, name, text string) (wrong []string) {
	prefix := strings.ToUpper(strings.ReplaceAll(name, "-", "_")) + "_"
	vars := makeVars(text)
	for v := range vars {
		if !strings.HasPrefix(v, prefix) {
			wrong = append(wrong, fmt.Sprintf("%s: %s does not begin with %s", file, v, prefix))
		}
	}
	for _, v := range []string{"VERSION", "SITE", "LICENSE", "LICENSE_FILES"} {
		if vars[prefix+v] == "" {
			wrong = append(wrong, fmt.Sprintf("%s: does not say %s%s", file, prefix, v))
		}
	}
	bar := strings.Repeat("#", 80)
	if !strings.HasPrefix(text, bar+"\n#\n# "+name+"\n#\n"+bar+"\n\n") {
		wrong = append(wrong, file+": does not begin with the name of the package between two lines of 80 #")
	}
	if !regexp.MustCompile(`(?m)^\$\(eval \$\([a-z]+-package\)\)$`).MatchString(text) {
		wrong = append(wrong, file+": hands the package to no infrastructure")
	}
	return wrong
}

func makeVars(text string) map[string]string {
	vars := map[string]string{}
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		if m := reAssign.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			vars[m[1]] += strings.Join(strings.Fields(m[2]), " ")
		}
	}
	return vars
}

var reHash = regexp.MustCompile(`^sha256  ([0-9a-f]{64})  (\S+)$`)

// hashes reads a .hash file.
func (x *external) hashes(file string) (map[string]string, []string) {
	text, err := x.read(file)
	if err != nil {
		return nil, []string{file + " is not there"}
	}
	list := map[string]string{}
	var wrong []string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if m := reHash.FindStringSubmatch(line); m != nil {
			list[m[2]] = m[1]
		} else if line != "" && !strings.HasPrefix(line, "#") {
			wrong = append(wrong, file+": not a hash: "+line)
		}
	}
	return list, wrong
}

// checkHashes: Buildroot was told to refuse what has no hash, so a licence or a
// kernel without one would end a build after hours.
func checkHashes(_ context.Context, x *external) (string, []string, error) {
	var wrong []string
	n := 0
	for _, p := range x.packages {
		text, err := x.read("package/" + p + "/" + p + ".mk")
		if err != nil {
			return "", nil, err
		}
		file := "package/" + p + "/" + p + ".hash"
		list, bad := x.hashes(file)
		wrong = append(wrong, bad...)
		vars := makeVars(text)
		for license := range strings.FieldsSeq(vars[strings.ToUpper(strings.ReplaceAll(p, "-", "_"))+"_LICENSE_FILES"]) {
			raw, err := os.ReadFile(filepath.Join(x.dir, "..", license))
			if err != nil {
				return "", nil, err
			}
			sum := sha256.Sum256(raw)
			n++
			if list[license] != hex.EncodeToString(sum[:]) {
				wrong = append(wrong, fmt.Sprintf("%s: does not say that %s is %x", file, license, sum))
			}
		}
	}
	kernel, bad := x.hashes("board/tillward/patches/linux/linux.hash")
	wrong = append(wrong, bad...)
	headers, bad := x.hashes("board/tillward/patches/linux-headers/linux-headers.hash")
	wrong = append(wrong, bad...)
	if !maps.Equal(kernel, headers) {
		wrong = append(wrong, "the hashes of linux and linux-headers differ")
	}
	for name, c := range x.defconfigs {
		v := c.value("BR2_LINUX_KERNEL_CUSTOM_VERSION_VALUE")
		n++
		if kernel["linux-"+v+".tar.xz"] == "" {
			wrong = append(wrong, fmt.Sprintf("%s_defconfig: no hash of linux %q", name, v))
		}
	}
	return fmt.Sprintf("%d hashes", n), wrong, nil
}

func checkNames(_ context.Context, x *external) (string, []string, error) {
	list, err := readNames("buildroot")
	if err != nil {
		return "", nil, err
	}
	maps.Copy(list, x.own())
	var wrong []string
	n := 0
	for _, c := range x.defconfigs {
		wrong = append(wrong, list.check(c)...)
		n += len(c.lines)
	}
	return fmt.Sprintf("%d lines", n), wrong, nil
}

func checkFiles(_ context.Context, x *external) (string, []string, error) {
	var wrong []string
	n := 0
	for _, c := range x.defconfigs {
		for _, s := range c.lines {
			for _, file := range s.ours() {
				n++
				if !x.exists(file) {
					wrong = append(wrong, fmt.Sprintf("%s: %s: %s is not there", c.file, s.name, file))
				}
			}
		}
	}
	return fmt.Sprintf("%d files", n), wrong, nil
}

// kernelFragments are the files that any configuration merges into its kernel's.
func (x *external) kernelFragments() []string {
	var files []string
	for _, c := range x.defconfigs {
		for _, s := range c.lines {
			if s.name == "BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES" {
				files = append(files, s.ours()...)
			}
		}
	}
	slices.Sort(files)
	return slices.DeleteFunc(slices.Compact(files), func(f string) bool { return !x.exists(f) })
}

// checkKernelNames also holds the fragments of one kernel against each other.
func checkKernelNames(_ context.Context, x *external) (string, []string, error) {
	list, err := readNames("linux")
	if err != nil {
		return "", nil, err
	}
	var wrong []string
	n := 0
	for _, file := range x.kernelFragments() {
		c, err := x.config(file)
		if err != nil {
			return "", nil, err
		}
		wrong = append(wrong, list.check(c)...)
		n += len(c.lines)
	}
	for name, d := range x.defconfigs {
		said := map[string]string{}
		for _, s := range d.lines {
			if s.name != "BR2_LINUX_KERNEL_CONFIG_FRAGMENT_FILES" {
				continue
			}
			for _, file := range s.ours() {
				c, err := x.config(file)
				if err != nil {
					continue // told by the check of files
				}
				for _, s := range c.lines {
					if by, ok := said[s.name]; ok && by != file {
						wrong = append(wrong, fmt.Sprintf("%s: %s says %s, and so does %s", name, file, s.name, by))
					}
					said[s.name] = file
				}
			}
		}
	}
	return fmt.Sprintf("%d lines", n), wrong, nil
}

func checkBusyboxNames(_ context.Context, x *external) (string, []string, error) {
	list, err := readNames("busybox")
	if err != nil {
		return "", nil, err
	}
	c, err := x.config(busyboxFragment)
	if err != nil {
		return "", nil, err
	}
	applets, err := x.read("board/tillward/applets")
	if err != nil {
		return "", nil, err
	}
	wrong := list.check(c)
	for line := range strings.Lines(applets) {
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "!") {
			continue
		}
		words := strings.Fields(line)
		for _, command := range words[min(1, len(words)):] {
			name := "CONFIG_" + strings.ToUpper(command)
			if command == "sh" {
				name = "CONFIG_ASH"
			}
			if c.value(name) != "y" {
				wrong = append(wrong, fmt.Sprintf("%s: scripts call %s, and it does not say %s=y", c.file, command, name))
			}
		}
	}
	return fmt.Sprintf("%d lines", len(c.lines)), wrong, nil
}

// features are ways to call commands that BusyBox knows by an option of its own.
var features = []struct {
	call *regexp.Regexp
	name string
}{
	{regexp.MustCompile(`\bod -`), "DESKTOP"},
	{regexp.MustCompile(`\bhead -c`), "FEATURE_FANCY_HEAD"},
	{regexp.MustCompile(`\btail -c`), "FEATURE_FANCY_TAIL"},
	{regexp.MustCompile(`\bdd .*\bconv=`), "FEATURE_DD_IBS_OBS"},
	{regexp.MustCompile(`\breadlink -f`), "FEATURE_READLINK_FOLLOW"},
	{regexp.MustCompile(`\bsyslogd .*-s `), "FEATURE_ROTATE_LOGFILE"},
	{regexp.MustCompile(`\bmdev -d`), "FEATURE_MDEV_DAEMON"},
	{regexp.MustCompile(`\bmount .*(-o \S*no|--bind|--move)`), "FEATURE_MOUNT_FLAGS"},
	{regexp.MustCompile(`\bip addr`), "FEATURE_IP_ADDRESS"},
	{regexp.MustCompile(`\bip link`), "FEATURE_IP_LINK"},
	{regexp.MustCompile(`\bip route`), "FEATURE_IP_ROUTE"},
}

// checkBusyboxFeatures reads what runs on a till. What our fragment does not ask
// for is there as long as Buildroot's own configuration of BusyBox has it.
func checkBusyboxFeatures(_ context.Context, x *external) (string, []string, error) {
	c, err := x.config(busyboxFragment)
	if err != nil {
		return "", nil, err
	}
	scripts, err := x.scripts()
	if err != nil {
		return "", nil, err
	}
	var wrong []string
	n := 0
	for _, file := range scripts {
		if !strings.Contains(file, "/overlay/") && !strings.Contains(file, "/initrd/") {
			continue
		}
		text, err := x.read(file)
		if err != nil {
			return "", nil, err
		}
		for _, f := range features {
			call := f.call.FindString(text)
			if call == "" {
				continue
			}
			n++
			if c.value("CONFIG_"+f.name) != "y" {
				wrong = append(wrong, fmt.Sprintf("%s: %q, and %s does not say CONFIG_%s=y", file, call, c.file, f.name))
			}
		}
	}
	return fmt.Sprintf("%d calls", n), wrong, nil
}

// checkBoards holds what a board says in the place of all: RAUC's file may
// differ in the boot loader and in nothing else.
func checkBoards(_ context.Context, x *external) (string, []string, error) {
	const file = "overlay/etc/rauc/system.conf"
	common, err := x.read("board/tillward/" + file)
	if err != nil {
		return "", nil, err
	}
	boards, err := filepath.Glob(filepath.Join(x.dir, "board/tillward/boards/*", file))
	if err != nil {
		return "", nil, err
	}
	loader := regexp.MustCompile(`(?m)^bootloader=.*$`)
	var wrong []string
	for _, board := range boards {
		own, err := os.ReadFile(board)
		if err != nil {
			return "", nil, err
		}
		if loader.ReplaceAllString(string(own), "") != loader.ReplaceAllString(common, "") {
			wrong = append(wrong, board+": differs from that of all boards in more than the boot loader")
		}
	}
	return fmt.Sprintf("%d with a file of their own", len(boards)), wrong, nil
}

func checkScripts(ctx context.Context, x *external) (string, []string, error) {
	scripts, err := x.scripts()
	if err != nil || len(scripts) == 0 {
		return "no script", nil, err
	}
	c := exec.CommandContext(ctx, "shellcheck", append([]string{"--external-sources", "--source-path=SCRIPTDIR", "--format=gcc"}, scripts...)...)
	c.Dir = x.dir
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return fmt.Sprintf("%d scripts", len(scripts)), strings.Split(string(bytes.TrimSpace(out)), "\n"), nil
	}
	if err != nil {
		return "", nil, fmt.Errorf("shellcheck: %w: %s", err, out)
	}
	return fmt.Sprintf("%d scripts", len(scripts)), nil, nil
}
