package image_test

import (
	"strings"
	"testing"

	"github.com/tillward/tillward/agent/internal/update"
	"github.com/tillward/tillward/hal/slot/slottest"
)

// With UEFI a slot is tried once: the firmware forgets what it is to start next
// as soon as it starts it. What comes first in its order is what runs for good.

func TestUpdateEFI(t *testing.T) {
	for name, o := range map[string]slottest.Options{"not activated": {EFI: true}, "activated by RAUC": {EFI: true, Activate: true}} {
		t.Run(name, func(t *testing.T) {
			l := start(t, o)
			two, three := l.plain("2.0.0"), l.plain("3.0.0")
			l.stage(two)
			l.next("A", false) // RAUC takes what it writes out of the order
			l.reboot()
			l.runs("1.0.0", "rootfs.0", false)
			l.move(two, update.Try, update.Reboot)
			if l.Primary() != "B" {
				t.Errorf("next is %s, want B once", l.Primary())
			}
			l.restart() // cut before it was known
			if got := l.runs("1.0.0", "rootfs.0", false); got.Failed != "" {
				t.Errorf("before the restart: %+v", got)
			}
			l.move(two, update.Try, update.Reboot)
			l.reboot()
			l.runs("2.0.0", "rootfs.1", true)
			l.next("A", false)
			if l.Lasts(t.Context()) {
				t.Error("the trial is said to outlive a restart")
			}
			l.move(two, update.Try, update.None)
			if l.Primary() != "A" {
				t.Error("asking again what runs has the slot started a second time")
			}
			l.move(two, update.Prove, update.None)
			l.move(two, update.Keep, update.None)
			l.next("B", true)
			if !l.Lasts(t.Context()) {
				t.Error("what was kept does not outlive a restart")
			}
			l.runs("2.0.0", "rootfs.1", false)
			l.reboot()
			if got := l.runs("2.0.0", "rootfs.1", false); got.Failed != "" {
				t.Errorf("truth: %+v", got)
			}
			l.stage(three)
			l.next("B", false)
			l.move(three, update.Try, update.Reboot)
			l.reboot()
			l.move(three, update.Prove, update.None)
			l.move(three, update.Keep, update.None)
			l.next("A", true)
			l.reboot()
			l.runs("3.0.0", "rootfs.0", false)
		})
	}
}

// TestBackEFI takes back what came up and is not well, and what was never
// started.
func TestBackEFI(t *testing.T) {
	l := start(t, slottest.Options{EFI: true})
	j := l.plain("2.0.0")
	l.stage(j)
	l.move(j, update.Try, update.Reboot)
	l.move(j, update.Back, update.None) // before the restart: nothing may be left to be started once
	l.next("A", false)
	l.reboot()
	l.runs("1.0.0", "rootfs.0", false)
	l.stage(j)
	l.move(j, update.Try, update.Reboot)
	l.reboot()
	l.runs("2.0.0", "rootfs.1", true)
	l.move(j, update.Back, update.Reboot)
	l.next("A", false)
	l.restart() // cut before it was known
	l.move(j, update.Back, update.Reboot)
	l.reboot()
	if got := l.runs("1.0.0", "rootfs.0", false); got.Failed != "" {
		t.Errorf("what we took back counts as the firmware's doing: %+v", got)
	}
	l.move(j, update.Back, update.None)
	l.next("A", false)
}

// TestFallbackEFI has a new system not come up: one hang, panic or power cut in
// the trial is the end of it.
func TestFallbackEFI(t *testing.T) {
	for name, breaks := range map[string]bool{"does not come up": true, "restarts before it has proved itself": false} {
		t.Run(name, func(t *testing.T) {
			l := start(t, slottest.Options{EFI: true})
			j := l.plain("2.0.0")
			l.stage(j)
			if breaks {
				l.Break("B")
			}
			l.move(j, update.Try, update.Reboot)
			l.reboot()
			if !breaks {
				l.runs("2.0.0", "rootfs.1", true)
				l.reboot()
			}
			if got := l.runs("1.0.0", "rootfs.0", false); !strings.Contains(got.Failed, "2.0.0") {
				t.Errorf("truth: %+v; want that the firmware came back", got)
			}
			if _, err := l.Move(t.Context(), j, update.Try); ends(err) != "FAILED install" {
				t.Errorf("tried again: %v", err)
			}
			l.move(j, update.Back, update.None)
			l.next("A", false)
			l.reboot()
			l.runs("1.0.0", "rootfs.0", false)
		})
	}
}

// TestHandedOverEFI updates a box on which what was kept broke later, and which
// runs what ran before, though that is not in the order any more. Whatever
// happens meanwhile, what runs is what is started.
func TestHandedOverEFI(t *testing.T) {
	l := start(t, slottest.Options{EFI: true})
	two, three, four := l.plain("2.0.0"), l.plain("3.0.0"), l.plain("4.0.0")
	for _, j := range []update.Job{two, three} { // B is kept; A is installed, tried, taken back and so in no order
		l.stage(j)
		l.move(j, update.Try, update.Reboot)
		l.reboot()
		if j.Version == "2.0.0" {
			l.move(j, update.Keep, update.None)
		}
	}
	l.move(three, update.Back, update.Reboot)
	l.reboot()
	l.move(three, update.Back, update.None)
	l.next("B", false)
	l.SetPrimary("A") // by the initrd
	l.reboot()
	l.runs("3.0.0", "rootfs.0", false)
	l.stage(four)
	l.next("A", false)
	l.reboot()
	l.runs("3.0.0", "rootfs.0", false)
	l.move(four, update.Try, update.Reboot)
	l.reboot()
	l.runs("4.0.0", "rootfs.1", true)
	l.move(four, update.Keep, update.None)
	l.next("B", true)
}
