package firmware

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// users makes passwd and group of the emulated till's root: those that every
// image of Buildroot has, as far as the till uses them, and those of a table of
// users as Buildroot's makeusers reads it: name, uid, group, gid, password, home,
// shell, other groups, comment; a name of - is a group alone, -1 a number of its
// own choice, and other groups must be there.
func users(table string) (passwd, group string, err error) {
	type member struct {
		name string
		id   int
		with []string
	}
	groups := []member{
		{"root", 0, nil},
		{"tty", 5, nil},
		{"disk", 6, nil},
		{"lp", 7, nil},
		{"dialout", 18, nil},
		{"messagebus", 100, nil},
		{"nobody", 65534, nil},
	}
	passwd = "root:x:0:0:root:/root:/bin/sh\nmessagebus:x:100:100:D-Bus:/run/dbus:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n" // #nosec G101 -- nobody can log in
	at := func(name string) int { return slices.IndexFunc(groups, func(g member) bool { return g.name == name }) }
	number := func(s string, free int) (int, error) {
		n, err := strconv.Atoi(s)
		if err == nil && n == -1 {
			n = free
		}
		return n, err
	}
	var others [][2]string
	for i, line := range strings.Split(table, "\n") {
		f := strings.Fields(line)
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) < 8 {
			return "", "", fmt.Errorf("users table, line %d: %d fields, at least 8 wanted", i+1, len(f))
		}
		gid, err := number(f[3], 1000+i)
		if err != nil {
			return "", "", fmt.Errorf("users table, line %d: group %w", i+1, err)
		}
		if at(f[2]) < 0 {
			groups = append(groups, member{f[2], gid, nil})
		}
		if f[0] == "-" {
			continue
		}
		uid, err := number(f[1], 1000+i)
		if err != nil {
			return "", "", fmt.Errorf("users table, line %d: user %w", i+1, err)
		}
		home, shell := f[5], f[6]
		if home == "-" {
			home = "/"
		}
		if shell == "-" {
			shell = "/bin/false"
		}
		passwd += fmt.Sprintf("%s:x:%d:%d:%s:%s:%s\n", f[0], uid, groups[at(f[2])].id, strings.Join(f[8:], " "), home, shell)
		if f[7] != "-" {
			for o := range strings.SplitSeq(f[7], ",") {
				others = append(others, [2]string{o, f[0]})
			}
		}
	}
	for _, o := range others {
		i := at(o[0])
		if i < 0 {
			return "", "", fmt.Errorf("users table: %s wants to be in %s, which is no group", o[1], o[0])
		}
		groups[i].with = append(groups[i].with, o[1])
	}
	for _, g := range groups {
		group += fmt.Sprintf("%s:x:%d:%s\n", g.name, g.id, strings.Join(g.with, ","))
	}
	return passwd, group, nil
}
