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
	switch power {
	case PowerOff, PowerOffOffline:
		s.Health, s.Reason, s.Advice = Offline, "POWER_OFF_OFFLINE", "Check power and cable."
		return s
	case PowerUnknown, "":
		s.Power = PowerUnknown
	}
	for _, v := range verdicts {
		if s.Sensors[v.sensor] != Yes || (v.health == Attention && power == PowerOffline) {
			continue // a warning is not why a device has stopped
		}
		s.Health, s.Reason, s.Advice = v.health, v.reason, v.advice
		return s
	}
	if power == PowerOffline {
		s.Health, s.Reason, s.Advice = Fault, "POWER_OFFLINE", "Look at the device's panel; it is on but not ready."
		return s
	}
	if s.Power == PowerUnknown {
		s.Health, s.Reason, s.Advice = NoSensor, "M_NOT_ASKED", "Nothing is known of this device yet."
		return s
	}
	for _, name := range vital[category] {
		if s.Sensors[name] == Unknown {
			s.Health, s.Reason, s.Advice = NoSensor, "M_NO_SENSOR", "This device cannot tell all that matters; look at it now and then."
			return s
		}
	}
	s.Health = OK
	return s
}

// vital are the sensors without which a category cannot be called healthy.
var vital = map[Category][]string{
	POSPrinter:  {"CoverOpen", "RecEmpty"},
	CashDrawer:  {"DrawerOpened"},
	SmartCardRW: {"SCPresentSensor"},
}

// verdicts are asked in this order; the first that fits says what to do.
var verdicts = []struct {
	sensor string
	health Health
	reason string
	advice string
}{
	{"CoverOpen", Fault, "COVER_OPEN", "Close the printer's cover."},
	{"RecEmpty", Fault, "REC_EMPTY", "Put in a new paper roll."},
	{"M_CutterError", Fault, "M_CUTTER_ERROR", "Clear the paper at the cutter, then switch the printer off and on."},
	{"M_UnrecoverableError", Fault, "M_UNRECOVERABLE_ERROR", "Switch the printer off and on; if it stays, replace it."},
	{"M_MechanicalError", Fault, "M_MECHANICAL_ERROR", "Look for jammed paper, then switch the printer off and on."},
	{"M_HeadTooHot", Fault, "M_HEAD_TOO_HOT", "Let the print head cool; printing goes on by itself."},
	{"RecNearEnd", Attention, "REC_NEAREMPTY", "Have a new paper roll ready."},
	{"M_CardMute", Attention, "M_CARD_MUTE", "Take the card out and put it in again; clean the reader if it happens often."},
}
