"""The words of customers' messages: for each intent, the templates of each split; no template stands in two."""

from __future__ import annotations

from typing import Final

THINGS: Final = (
    "lamp",
    "kettle",
    "phone",
    "chair",
    "clock",
    "jacket",
    "mixer",
    "tablet",
    "helmet",
    "carpet",
    "mirror",
    "printer",
)
OPENERS: Final = {
    "train": ("Hello,", "Hi, {name} here:", "Dear team,", "Good day,", "My name is {name};", "Hey,"),
    "golden": ("Hello team,", "Hi, I am {name}:", "Good day, {name} here:"),
    "adversarial": ("Hi hi...", "{name} >>", "Hello?!"),
}
CORES: Final = {
    "refund": {
        "train": (
            "I want a refund for the {thing}",
            "please refund the {thing}",
            "I would like my money back for the {thing}",
            "can I get my money back",
            "send my money back to my bank",
            "give me a refund now",
            "the {thing} was bad and I want a refund",
            "when do I get the refund for my {thing}",
            "I returned the {thing} and wait for my money",
            "you still owe me the money for the {thing}",
        ),
        "golden": (
            "is a refund possible for the {thing}",
            "I want the money for the {thing} back",
            "a refund of the {thing} would be good",
            "refund me for the {thing} I returned",
        ),
        "adversarial": ("the {thing} is late but I want my money back", "money for the {thing}: back to me"),
    },
    "delivery": {
        "train": (
            "my parcel has not arrived",
            "where is the parcel with my {thing}",
            "the courier did not deliver the {thing}",
            "the delivery of my {thing} is late",
            "when will the {thing} be delivered",
            "the parcel is late",
            "the courier did not ring and took the parcel away",
            "delivery of the {thing} takes too long",
            "has the {thing} been sent by courier",
            "I wait for the parcel since Monday",
        ),
        "golden": (
            "the delivery is late and no {thing} has arrived",
            "did the courier take my {thing} away",
            "when has the parcel been sent",
            "I wait for the delivery of a {thing}",
        ),
        "adversarial": ("the new {thing} has not arrived by courier", "parcel with {thing}: late"),
    },
    "login": {
        "train": (
            "I cannot log in to my account",
            "my password does not work",
            "I forgot my password",
            "please reset my password",
            "my account is locked",
            "the login page shows an error",
            "I need a new password for the account",
            "login fails since Monday",
            "unlock my account",
            "the code for the login does not come",
        ),
        "golden": (
            "the password of my account is lost",
            "I cannot log in since Monday",
            "the login says my account is locked",
            "reset the login for my account",
        ),
        "adversarial": ("I ordered a {thing} but cannot log in", "password for the {thing} account: does not work"),
    },
    "invoice": {
        "train": (
            "the invoice for the {thing} is wrong",
            "please send me the invoice",
            "I was billed twice for the {thing}",
            "my bill shows the wrong address",
            "the tax on the bill is not right",
            "I need a copy of the invoice",
            "there is an error on the invoice",
            "add our tax number to the bill",
            "I got the same invoice twice",
            "the bill for the {thing} is too high",
        ),
        "golden": (
            "the tax number on the invoice is wrong",
            "I need the bill for the {thing}",
            "send a copy of the bill",
            "the invoice shows the {thing} twice",
        ),
        "adversarial": ("you sent the {thing} but the bill is wrong", "invoice of the {thing}: address not right"),
    },
    "cancel": {
        "train": (
            "I want to cancel my order",
            "please cancel the {thing}",
            "stop the order of the {thing}",
            "I do not want the {thing} any more",
            "cancel my contract",
            "I ordered the {thing} by mistake",
            "end my contract this month",
            "how do I cancel",
            "please stop my order",
            "I no longer need the {thing}, cancel it",
        ),
        "golden": (
            "can you cancel the order of a {thing}",
            "stop the {thing}, I ordered it by mistake",
            "I want to end the contract",
            "I do not want this order any more",
        ),
        "adversarial": ("the bill is right but cancel the {thing}", "order of {thing}: a mistake, stop it"),
    },
    "repair": {
        "train": (
            "the {thing} is broken",
            "my {thing} does not turn on",
            "please repair the {thing}",
            "the {thing} makes a noise",
            "is the {thing} under warranty",
            "a part of the {thing} is broken",
            "I need a repair of my {thing}",
            "the {thing} stopped after a week and needs a repair",
            "can you fix the {thing}",
            "the warranty should cover my {thing}",
        ),
        "golden": (
            "can the broken {thing} be fixed",
            "does the warranty cover a broken {thing}",
            "repair a part of my {thing}",
            "my {thing} makes a noise, please fix it",
        ),
        "adversarial": ("the {thing} arrived but does not turn on", "{thing} with a noise: warranty"),
    },
}
