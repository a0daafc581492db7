package main

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tillward/tillward/provisioning/boot"
)

// bootLog is a captured boot.
type bootLog struct {
	Log  string `required:"" help:"The event log: /sys/kernel/security/tpm0/binary_bios_measurements of the box." placeholder:"FILE"`
	PCRs string `name:"pcrs" help:"What its registers hold: the output of tpm2_pcrread sha256, or a copy of the folder /sys/class/tpm/tpm0/pcr-sha256. Computed from the log by default." placeholder:"FILE"`
}

const maxLogFile = 1 << 20 // bytes

// read returns the log and the values of the quoted registers, which it adds up
// to. The value of PCR 11 is left out when there are lists of registers that count
// and none names it: some systems extend it when the log is closed.
func (c *bootLog) read(lists ...[]int) (raw []byte, values [][]byte, events []boot.Event, err error) {
	if raw, err = readFile(c.Log, maxLogFile); err != nil {
		return nil, nil, nil, err
	}
	if c.PCRs == "" {
		values, err = boot.Replay(raw)
	} else {
		values, err = readPCRs(c.PCRs)
	}
	if len(lists) > 0 && !slices.ContainsFunc(lists, func(l []int) bool { return len(l) == 0 || slices.Contains(l, 11) }) {
		values = values[:min(len(values), slices.Index(boot.Quoted[:], 11))]
	}
	if err == nil {
		events, err = boot.ParseLog(raw, values)
	}
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%s: %w", c.Log, err)
	}
	return raw, values, events, nil
}

// usual adds to registers that always count those that do so by how a box boots:
// 11 for a unified kernel image, 8 for a boot loader that measures its commands.
// A value that was not read must not weaken what is made of the log.
func (c *bootLog) usual(always []int, raw []byte, values [][]byte) ([]int, error) {
	all, err := boot.Replay(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.Log, err)
	}
	has := func(pcr int) bool {
		return slices.ContainsFunc(all[slices.Index(boot.Quoted[:], pcr)], func(b byte) bool { return b != 0 })
	}
	list := slices.Clone(always)
	if has(11) {
		if len(values) < len(all) {
			return nil, usage{fmt.Errorf("--pcrs: no value of PCR 11, of which the log holds events: read it with the others, or name registers without it")}
		}
		list = append(list, 11)
	}
	if has(8) || !has(11) {
		list = append(list, 8)
	}
	slices.Sort(list)
	return list, nil
}

var pcrLine = regexp.MustCompile(`^\s*(\d{1,2})\s*:\s*(?:0[xX])?([0-9A-Fa-f]{64})\s*$`)

// readPCRs reads the values of PCR 0 to 9, all of them, and that of 11 if it is
// there, from the output of tpm2_pcrread or from the kernel's folder with a file
// for each.
func readPCRs(path string) ([][]byte, error) {
	lines := ""
	if fi, err := os.Stat(path); err == nil && fi.IsDir() {
		for _, p := range boot.Quoted {
			b, err := readFile(filepath.Join(path, strconv.Itoa(p)), 1<<10)
			if p > 9 && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			lines += fmt.Sprintf("%d: %s\n", p, bytes.TrimSpace(b))
		}
	} else {
		b, err := readFile(path, 64<<10)
		if err != nil {
			return nil, err
		}
		lines = string(b)
	}
	values := make(map[int][]byte)
	bank := "sha256"
	for s := bufio.NewScanner(strings.NewReader(lines)); s.Scan(); {
		if name, ok := strings.CutSuffix(strings.TrimSpace(s.Text()), ":"); ok {
			bank = name
		}
		m := pcrLine.FindStringSubmatch(s.Text())
		if m == nil || bank != "sha256" {
			continue
		}
		p, _ := strconv.Atoi(m[1])
		v, err := hex.DecodeString(m[2])
		if err != nil {
			return nil, fmt.Errorf("%s: PCR %d: %w", path, p, err)
		}
		if _, twice := values[p]; twice {
			return nil, fmt.Errorf("%s: PCR %d twice", path, p)
		}
		values[p] = v
	}
	var list [][]byte
	for _, p := range boot.Quoted {
		if values[p] == nil && p > 9 {
			continue
		}
		if values[p] == nil {
			return nil, fmt.Errorf("%s: no SHA-256 value of PCR %d, only of %v: make it with tpm2_pcrread sha256:0,1,2,3,4,5,6,7,8,9,11", path, p, slices.Sorted(maps.Keys(values)))
		}
		list = append(list, values[p])
	}
	return list, nil
}
