// Package brcheck checks the BR2_EXTERNAL tree in buildroot/ from outside, with
// a parser of its own.
//
// Alone needs nothing but the repository and Debian's tools: what the tree says
// of itself, the names it uses against lists that were made from Buildroot,
// Linux and BusyBox, its scripts, the disk layout and an update bundle from
// dummy inputs. Against asks a Buildroot checkout: whether it takes each
// configuration, loses no line of it and resolves what hangs on it. With the
// source of a kernel, Against asks that too.
//
// Nothing is downloaded, and nothing is built but configurations: an image that
// passes has not been shown to build, and far less to boot.
package brcheck

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
)

// Result is what one check found. It passed when nothing is wrong.
type Result struct {
	Name    string   `json:"name"`
	Wrong   []string `json:"wrong,omitempty"`
	Note    string   `json:"note,omitempty"` // figures, or why it was skipped
	Skipped bool     `json:"skipped,omitempty"`
	Seconds float64  `json:"seconds"`
}

// check is one of them. A fault that is not the tree's, such as a tool that is
// missing, is an error; errSkip is one that says why nothing was checked.
type check struct {
	name string
	run  func(context.Context, *external) (note string, wrong []string, err error)
}

var errSkip = errors.New("skipped")

var alone = []check{
	{"description", checkDescription},
	{"menus", checkMenus},
	{"packages", checkPackages},
	{"hashes", checkHashes},
	{"defconfigs made of fragments", checkComposed},
	{"defconfig names", checkNames},
	{"files named", checkFiles},
	{"kernel names", checkKernelNames},
	{"busybox names", checkBusyboxNames},
	{"busybox features", checkBusyboxFeatures},
	{"boards", checkBoards},
	{"scripts", checkScripts},
	{"disk and bundle", checkPack},
}

// Alone runs the checks that need no Buildroot over the external tree in dir,
// the folder buildroot/ of the repository: all of them, or those with one of the
// given words in their name. Each result comes when it is there; an error ends
// them.
func Alone(ctx context.Context, dir string, only ...string) iter.Seq2[Result, error] {
	x, err := open(dir)
	return runAll(ctx, x, err, alone, only)
}

func runAll(ctx context.Context, x *external, err error, checks []check, only []string) iter.Seq2[Result, error] {
	return func(yield func(Result, error) bool) {
		if err != nil {
			yield(Result{}, err)
			return
		}
		for _, c := range checks {
			if len(only) > 0 && !slices.ContainsFunc(only, func(word string) bool { return strings.Contains(c.name, word) }) {
				continue
			}
			began := time.Now()
			note, wrong, err := c.run(ctx, x)
			r := Result{Name: c.name, Note: note, Wrong: wrong, Seconds: time.Since(began).Seconds()}
			slices.Sort(r.Wrong)
			if r.Skipped = errors.Is(err, errSkip); err != nil && !r.Skipped {
				yield(r, fmt.Errorf("check %s: %w", c.name, err))
				return
			}
			if !yield(r, nil) {
				return
			}
		}
	}
}
