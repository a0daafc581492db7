package hal

import "maps"

// Judge rolls a look up into the one light. Everything bad wins over
// everything unknown, and everything unknown wins over OK: a sensor that the
// category stands on and that is not there never reads as healthy.
func Judge(category Category, power Power, sensors map[string]Tri) Status {
	s := Status{Power: power, Sensors: maps.Clone(sensors)}
	if s.Sensors == nil {
		s.Sensors = map[string]Tri{}
	}
	for _, name := range vital[category] {
		if _, ok := s.Sensors[name]; !ok {
			s.Sensors[name] = Unknown
		}
	}
	if power == "" {
		s.Power = PowerUnknown
	}
	gone := power == PowerOff || power == PowerOffOffline
	for _, v := range verdicts {
		switch {
		case s.Sensors[v.sensor] != Yes:
		case gone && v.health != Offline: // what a device said before it went
		case power == PowerOffline && v.health == Attention: // a warning is not why a device has stopped
		default:
			s.Health, s.Reason, s.Advice = v.health, v.reason, v.advice
			return s
		}
	}
	switch {
	case power == PowerOff:
		s.Health, s.Reason, s.Advice = Offline, "POWER_OFF", "Switch the device on."
	case gone:
		s.Health, s.Reason, s.Advice = Offline, "POWER_OFF_OFFLINE", "Check power and cable."
	case category == Other:
		s.Health, s.Reason, s.Advice = NoSensor, "M_NO_DRIVER", "Something is plugged in that nobody watches; configure it, or leave it."
	case power == PowerOffline:
		s.Health, s.Reason, s.Advice = Fault, "POWER_OFFLINE", "Look at the device's panel; it is on but not ready."
	case s.Power == PowerUnknown:
		s.Health, s.Reason, s.Advice = NoSensor, "M_NOT_ASKED", "Nothing is known of this device yet."
	case blind(category, s.Sensors):
		s.Health, s.Reason, s.Advice = NoSensor, "M_NO_SENSOR", "This device cannot tell all that matters; look at it now and then."
	default:
		s.Health = OK
	}
	return s
}

// vital are the sensors without which a category cannot be called healthy.
// Scanners and line displays tell of their power alone.
var vital = map[Category][]string{
	POSPrinter:  {"CoverOpen", "RecEmpty"},
	CashDrawer:  {"DrawerOpened"},
	SmartCardRW: {"SCPresentSensor"},
	Tamper:      {"M_Tampered"},
	Door:        {"M_DoorOpen"},
	Host:        {"M_DiskLow", "M_MemoryLow"},
}

// blind reports whether a device cannot tell what its category stands on.
func blind(category Category, sensors map[string]Tri) bool {
	for _, name := range vital[category] {
		if sensors[name] == Unknown {
			return true
		}
	}
	// A chip in the box measures temperature or supply, seldom both.
	return category == Environment && sensors["M_TempHigh"] == Unknown && sensors["M_SupplyLow"] == Unknown
}

// verdicts are asked in this order; the first that fits says what to do. Only
// an Offline one is asked of a device that is gone.
var verdicts = []struct {
	sensor string
	health Health
	reason string
	advice string
}{
	{"M_DaemonGone", Offline, "M_PCSCD_GONE", "Start the card service on the box (pcscd), and let the agent's user ask it."},
	{"M_Tampered", Fault, "M_TAMPERED", "Look at the box and its seal before anybody pays here again."},
	{"CoverOpen", Fault, "COVER_OPEN", "Close the printer's cover."},
	{"RecEmpty", Fault, "REC_EMPTY", "Put in a new paper roll."},
	{"M_CutterError", Fault, "M_CUTTER_ERROR", "Clear the paper at the cutter, then switch the printer off and on."},
	{"M_UnrecoverableError", Fault, "M_UNRECOVERABLE_ERROR", "Switch the printer off and on; if it stays, replace it."},
	{"M_MechanicalError", Fault, "M_MECHANICAL_ERROR", "Look for jammed paper, then switch the printer off and on."},
	{"M_HeadTooHot", Fault, "M_HEAD_TOO_HOT", "Let the print head cool; printing goes on by itself."},
	{"M_DrawerStuck", Fault, "M_DRAWER_STUCK", "See whether the drawer is locked, and check its cable to the printer."},
	{"M_DiskFailing", Fault, "M_DISK_FAILING", "The disk says that it will fail; replace it, or the box."},
	{"M_UnexpectedOpen", Attention, "M_DRAWER_UNEXPECTED_OPEN", "Ask who opened the drawer: no sale and no command did."},
	{"M_LeftOpen", Attention, "M_DRAWER_LEFT_OPEN", "Close the cash drawer."},
	{"M_DoorOpen", Attention, "M_DOOR_OPEN", "Close the door of the box."},
	{"RecNearEnd", Attention, "REC_NEAREMPTY", "Have a new paper roll ready."},
	{"M_CardMute", Attention, "M_CARD_MUTE", "Take the card out and put it in again; clean the reader if it happens often."},
	{"M_DiskLow", Attention, "M_DISK_LOW", "Make room on the box's disk."},
	{"M_MemoryLow", Attention, "M_MEMORY_LOW", "See what fills the box's memory; a restart helps for a while."},
	{"M_HostHot", Attention, "M_HOST_HOT", "Free the box's vents and check its fan."},
	{"M_TempHigh", Attention, "M_TEMP_HIGH", "Find out why it is hot inside the box."},
	{"M_SupplyLow", Attention, "M_SUPPLY_LOW", "Check the power supply of the box."},
	{"M_ClockUnsynced", Attention, "M_CLOCK_UNSYNCED", "Let the box reach its time server."},
}
