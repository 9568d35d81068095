"""Sequences that lose replicas or do not end as they should: they fail once they do.

`make bench-floors OPTIONS='--fleets 0 --sequences 1000 --known'` prints the table.
"""

from collections.abc import Collection, Mapping

from tests.floors.player import Verdict

_BUDGETS = frozenset(("month-used-up", "month-used-up-and-raised", "tier-used-up", "gpus-limited"))

F1 = "F1: a bad template is not replaced by the newest one"
F2 = "F2: a rollout takes more than one replica"
F3 = "F3: a budget removes replicas within the floor"
F4_F9 = "F4, F9: the Deployment of a renamed pool is deleted at once"
F5 = "F5: the number of an autoscaler stands"
F6 = "F6: a rollout waits for a device that nobody gives"
F10 = "F10: a surge that a quota refuses does not become in place"
F11_UNITS = "F11, S1-1: minReplicas are units of a reference, so fewer pods run"
F11_COST = "F11: dearer devices than necessary"

_SEEDS: Mapping[str, str] = {
    F1: (
        "11 12 27 38 41 58 116 118 131 142 144 147 156 166 202 214 220 233 236 260 278 291 "
        "293 298 313 339 343 361 364 369 377 388 398 400 409 423 434 461 476 486 490 502 503 "
        "540 544 549 551 555 558 574 578 587 593 595 605 624 625 632 634 644 654 656 679 683 "
        "701 721 736 739 743 751 753 790 793 795 804 806 808 820 828 841 859 862 864 870 876 "
        "878 889 904 910 918 921 927 950 955 969 983 985 994"
    ),
    F2: (
        "6 7 30 76 129 167 188 240 251 308 375 401 411 416 418 457 472 505 580 588 594 626 "
        "639 688 696 724 760 877 936 948 949 990"
    ),
    F3: (
        "128 141 148 154 196 247 250 254 328 426 439 515 541 611 706 746 763 817 843 869 873 "
        "893 911 947 957 967"
    ),
    F4_F9: (
        "40 54 61 74 80 96 100 102 119 133 139 150 201 209 241 249 262 266 272 273 282 284 "
        "304 359 360 366 371 379 389 403 410 413 414 441 450 452 459 467 484 494 501 504 513 "
        "521 524 537 556 559 572 583 598 616 617 636 647 680 729 745 755 774 776 791 803 816 "
        "835 842 849 858 875 890 906 908 909 945 960 966 984"
    ),
    F5: (
        "24 66 94 163 194 211 212 227 231 256 292 363 373 407 432 442 446 469 488 500 542 547 "
        "585 608 638 667 708 719 757 766 775 782 826 845 989"
    ),
    F6: "186 465 539 648 662 669 711 928 972 1000",
    F10: "127 137 145 159 226 330 332 440 463 640 643 747 863",
    F11_UNITS: (
        "9 10 18 21 34 35 37 39 44 47 48 52 56 60 68 79 81 83 84 90 92 93 98 103 105 108 112 "
        "117 124 132 153 161 175 177 181 182 184 191 197 207 218 223 243 244 261 263 264 267 "
        "290 294 301 312 314 317 319 320 322 325 329 334 341 345 346 348 349 355 368 374 376 "
        "380 381 383 384 386 387 391 408 425 429 433 435 445 447 448 456 462 478 491 492 496 "
        "498 506 509 519 525 553 563 567 569 573 575 576 579 600 609 615 630 631 635 641 642 "
        "657 664 673 674 681 685 694 698 709 710 713 720 723 752 756 761 770 779 783 784 788 "
        "789 792 802 807 814 819 821 829 831 832 837 838 839 847 850 857 865 883 891 896 898 "
        "899 900 901 902 915 917 920 923 931 934 935 938 942 943 954 961 962 963 964 974 975 "
        "978 981 987 995"
    ),
    F11_COST: "29 982",
}
UNSOLVED: Mapping[int, str] = {
    seed: reason for reason, seeds in _SEEDS.items() for seed in map(int, seeds.split())
}
"""Reasons by seed."""


def probable_reason(verdict: Verdict, hit: Collection[str]) -> str:
    """Return the first known reason that fits what was found; a sequence may have several."""
    text = "\n".join(verdict.findings)
    if "as an autoscaler wrote" in text:
        return F5
    if verdict.ticks_below_floor:
        return _reason_of_loss(verdict.findings[0], hit)
    if "bad image" in text:
        return F1
    if "a quota refuses" in text:
        return F10
    if "for ever" in text:
        return F6
    return F11_UNITS if verdict.unsettled else F11_COST


def _reason_of_loss(finding: str, hit: Collection[str]) -> str:
    if "pool-renamed" in hit:
        return F4_F9
    if finding.endswith("1 may be missing"):
        return F2
    return F3 if _BUDGETS.intersection(hit) else F11_UNITS
