"""What each judge makes of answers as models write them: right, wrong, or unreadable."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from analysis.judges import JUDGES, Verdict, circular, summarise
from analysis.statistics import rate_interval

ROOT = Path(__file__).parent.parent
SIDES = ("left", "right", "above", "below")
YES = ("yes", "no")
DEPTH = ("A is closer", "B is closer")
CORNERS = ("top left", "top right", "left")
MOVED = ("It did not move", "It moved left", "It moved right")
IMAGES = ("the first image", "the second image")
LABELS = ("A", "B", "C", "D")
SWAPPED = ("B", "A")
COLOURS = ("red", "blue")
COUNTS = ("2", "3", "13", "-3")
DIGITS = ("0", "3", "2", "1")
PAINTS = ("red", "blue", "green", "yellow")
FOUR = ("1", "2", "3", "4")
LR = ("left", "right")
ANIMALS = ("a dog", "a cat", "a horse", "a bird")
PLACES = ("The car is behind the tree", "The car is in front of the tree", "The car is next to the tree")
POINTS = ("Point A", "Point B", "Point C", "Point D")

# answer, options, the letter that it means ("" for none)
CHOICES = [
    # a letter, however it is written
    ("B", SIDES, "B"),
    ("(B)", SIDES, "B"),
    ("b)", SIDES, "B"),
    ("b", SIDES, "B"),
    ("B.", SIDES, "B"),
    ("**B**", SIDES, "B"),
    ("**(B)**\n", SIDES, "B"),
    ("`C`", SIDES, "C"),
    ("[D]", SIDES, "D"),
    ("\u201cB\u201d", SIDES, "B"),
    ("\uff08B\uff09", SIDES, "B"),
    ("a", SIDES, "A"),
    ("Option B", SIDES, "B"),
    ("option b", SIDES, "B"),
    ("B<|im_end|>", SIDES, "B"),
    ("$\\boxed{B}$", SIDES, "B"),
    ("So we get \\boxed{\\text{C}}", SIDES, "C"),
    # a letter and its text
    ("B. right", SIDES, "B"),
    ("(B) right", SIDES, "B"),
    ("B: right", SIDES, "B"),
    ("B - right", SIDES, "B"),
    ("B right", SIDES, "B"),
    ("C. The circle is above the square, while A would mean left.", SIDES, "C"),
    ("(B) no\n\nThe car is not beneath the cat; it is outside.", YES, "B"),
    ("(A) A is closer", DEPTH, "A"),
    # stated outright
    ("Answer: (B)", SIDES, "B"),
    ("Answer:b", SIDES, "B"),
    ("The answer is B", SIDES, "B"),
    ("The correct answer is **(B) right**.", SIDES, "B"),
    ("The correct option is: D", SIDES, "D"),
    ("I would go with B, although A is possible.", SIDES, "B"),
    ("The circle could be left (A), but the answer is B.", SIDES, "B"),
    ("Final answer: above", SIDES, "C"),
    ("B is the correct answer, since A is to the side.", SIDES, "B"),
    ("A is tempting, B too, yet C is correct.", SIDES, "C"),
    ("The answer is not A but B.", SIDES, "B"),
    ("(A) left (B) right (C) above (D) below. The answer is (D).", SIDES, "D"),
    ("The dog faces right and the cat left.\n\nB", SIDES, "B"),
    ("<think>left? no, right. (A)?</think><answer>B</answer>", SIDES, "B"),
    ("so it is A ... wait </think> right", SIDES, "B"),
    ("<answer> right </answer>", SIDES, "B"),
    # mentioned, and nothing else is
    ("Based on the image, A", SIDES, "A"),
    ("Based on the image, A.", SIDES, "A"),
    ("I believe B because of the shadow", SIDES, "B"),
    ("It must be (c), given the picture", SIDES, "C"),
    # the option's text
    ("right", SIDES, "B"),
    ("Right.", SIDES, "B"),
    ("The red circle is to the left of the blue cross.", SIDES, "A"),
    ("A red circle is left", SIDES, "A"),
    ("The first image.", IMAGES, "A"),
    ("first image", IMAGES, "A"),
    ("It did not move.", MOVED, "A"),
    ("The chair: it moved  LEFT", MOVED, "B"),
    ("top left", CORNERS, "A"),
    ("It is in the top right part, so top right", CORNERS, "B"),
    ("Point B is closer", DEPTH, "B"),
    ("There are 3 cubes.", COUNTS, "B"),
    ("13", COUNTS, "C"),
    ("-3", COUNTS, "D"),
    ("No, there is nothing there.", YES, "B"),
    ("No.", YES, "B"),
    ("Yes, it is, no doubt about it.", YES, "A"),
    # denied
    ("It is not left, it is right.", SIDES, "B"),
    ("left, not right", SIDES, "A"),
    ("It isn't above but below", SIDES, "D"),
    ("right rather than left", SIDES, "B"),
    ("A is wrong. B", SIDES, "B"),
    ("not left", SIDES, ""),
    ("not A", SIDES, ""),
    ("It is neither left nor right.", SIDES, ""),
    ("The answer is not B.", SIDES, ""),
    ("B is incorrect", SIDES, ""),
    ("It cannot be above.", SIDES, ""),
    ("There is no circle to the left.", SIDES, ""),
    ("Neither A nor B; C", SIDES, "C"),
    ("A, because B is behind it", SIDES, "A"),
    ("Option A is not correct, option B is.", SIDES, "B"),
    ("I would not choose B but D", SIDES, "D"),
    ("All options except B are wrong.", SIDES, ""),
    # more than one, or none
    ("If the answer is A, it would be left of it, which it is not: B", SIDES, ""),
    ("Whether the answer is A or not, I cannot tell", SIDES, ""),
    ("Both points A and B lie on the same wall, so nobody can tell.", DEPTH, ""),
    ("Point A, which is on the chair, is farther away.", DEPTH, ""),
    ("None of the choices (A) 2, (B) 3 or (C) 13 fits.", COUNTS, ""),
    ("A. B. C. D.", SIDES, ""),
    ("A or B", SIDES, ""),
    ("A/B", SIDES, ""),
    ("A, B", SIDES, ""),
    ("Both A and B", SIDES, ""),
    ("The answer is A or C", SIDES, ""),
    ("left or right", SIDES, ""),
    ("The answer is left or below.", SIDES, ""),
    ("Answer: A. Answer: B", SIDES, ""),
    ("B. left", SIDES, ""),
    ("<answer>A</answer> <answer>B</answer>", SIDES, ""),
    ("(A) left (B) right (C) above (D) below", SIDES, ""),
    ("A red circle and a blue cross", SIDES, ""),
    ("I think so", SIDES, ""),
    ("E", SIDES, ""),
    ("(E) left", SIDES, ""),
    ("Answer: E, which is left of it", SIDES, ""),
    ("The C-shaped thing", SIDES, ""),
    ("Point B", SIDES, ""),
    ("shape(s)", LABELS, ""),
    ("I cannot tell.", YES, ""),
    ("There is no cat", YES, ""),
    ("It cannot be known", YES, ""),
    ("leftover, bright, abovementioned", SIDES, ""),
    ("33", COUNTS, ""),
    ("3.5", COUNTS, ""),
    ("", SIDES, ""),
    ("   \n", SIDES, ""),
    ("...", SIDES, ""),
    ("<think>It is B, since", SIDES, ""),
    ("left", ("left", "right", "left"), ""),
    # a letter and the text of another
    ("(A) blue", COLOURS, ""),
    ("A. blue", COLOURS, ""),
    ("A: blue.", COLOURS, ""),
    ("A) blue", COLOURS, ""),
    ("**A** - blue", COLOURS, ""),
    ("A. red", COLOURS, "A"),
    ("a blue one", COLOURS, "B"),
    ("A: It is on the right.", SIDES, ""),
    ("A: I think right", SIDES, ""),
    ("A: it is on the left.", SIDES, "A"),
    ("A: because it is on the right", SIDES, "A"),
    ("B: The left circle is closer.", DEPTH, "B"),
    # "no" that answers nothing
    ("No image was provided.", YES, ""),
    ("No idea", YES, ""),
    ("No answer", YES, ""),
    ("no comment", YES, ""),
    ("No the car is beside it.", YES, "B"),
    ("No doubt it is left", SIDES, "A"),
    ("There is no doubt that it is left", SIDES, "A"),
    # denied by other words
    ("anything but left", SIDES, ""),
    ("Everything but A", SIDES, ""),
    ("The opposite of left", SIDES, ""),
    ("The opposite of left: right", SIDES, "B"),
    ("There is nothing on the left", SIDES, ""),
    ("No car is visible on the left", SIDES, ""),
    ("It lacks red", COLOURS, ""),
    ("hardly A", SIDES, ""),
    ("I doubt it's left", SIDES, ""),
    ("It is impossible that it's left", SIDES, ""),
    ("The first option, A, is wrong", SIDES, ""),
    ("Wrong: A", SIDES, ""),
    ("A is wrong and B is right", SIDES, "B"),
    ("A: no, B: yes", SIDES, "B"),
    ("A: no, B: yes", YES, ""),
    ("A: no", SIDES, ""),
    ("A: no", YES, ""),
    ("(A) No (B) Yes", SIDES, ""),
    ("(A) No (B) Yes", YES, ""),
    ("Option A: false. Option B: true.", SIDES, "B"),
    ("Choose A if it is left, B otherwise", SIDES, ""),
    ("A if I had to guess", SIDES, "A"),
    # two letters, and letters that are names
    ("Answer: A B", SIDES, ""),
    ("A B", SIDES, ""),
    ("A|B", SIDES, ""),
    ("Vitamin B", SIDES, ""),
    ("Grade: B", SIDES, ""),
    ("Class A.", SIDES, ""),
    # letters that are texts too
    ("(A)", LABELS, "A"),
    ("A", LABELS, "A"),
    ("(A)", SWAPPED, "A"),
    ("A", SWAPPED, ""),
    ("The answer is A", SWAPPED, ""),
    ("(A) B", SWAPPED, "A"),
    ("A is closer to the camera", tuple(reversed(DEPTH)), "B"),
]


# Answers as vision-language models write them, by kind: answer, options, the letter that a person reads ("" for none).
WRITTEN = {
    "pointers to the list": [
        ("None of the above.", ("above", "below"), ""),
        ("None of the above", SIDES, ""),
        ("All of the above.", SIDES, ""),
        ("The answer is none of the above.", SIDES, ""),
        ("As mentioned above, I cannot tell.", SIDES, ""),
        ("See below.", SIDES, ""),
        ("The image above does not show a circle.", ("above", "below"), ""),
        ("Based on the above, the answer is left.", SIDES, "A"),
        ("From the analysis above, the circle is on the left.", SIDES, "A"),
        ("As explained below, it is B.", SIDES, "B"),
        ("Below is my reasoning. The circle is left of the square.", SIDES, "A"),
        ("The picture above the sofa", SIDES, "C"),
        ("It hangs above the sofa.", SIDES, "C"),
        ("The options above do not fit.", SIDES, ""),
        ("None of the above.", ("left", "right", "none of the above"), "C"),
        ("The correct answer is (C) None of the above.", ("left", "right", "none of the above"), "C"),
        ("All of the above", ("a dog", "a cat", "all of the above"), "C"),
        ("C. None of the above", ("a dog", "a cat", "none of the above"), "C"),
        ("Given the options above, B.", SIDES, "B"),
        ("The above image shows a circle to the right of a square.", SIDES, "B"),
    ],
    "list markers": [
        ("1. The picture shows a table.\n2. I count the balls.\n\nThere are 3 balls.", DIGITS, "B"),
        ("1. The picture shows a table.\n\nThe answer is 3.", DIGITS, "B"),
        ("1. Red ball\n2. Blue ball\n3. Green ball\n\n**Answer: (B) 3**", DIGITS, "B"),
        ("**1. Look**\nThe answer is 3", DIGITS, "B"),
        ("1. There are three balls.", DIGITS, ""),
        ("1) red ball\n2) blue ball\n\nSo there are 2 balls.", DIGITS, "C"),
        ("Step 1: find the balls.\nStep 2: count them.\nThere are 3.", DIGITS, "B"),
        ("### Step 1\nI see a table.\n### Step 2\nCount: 3", DIGITS, "B"),
        ("3", DIGITS, "B"),
        ("3.", DIGITS, "B"),
        ("3. There are 3 balls on the table.", DIGITS, "B"),
        ("1. A red ball\n2. A blue ball\n3. A green ball", DIGITS, ""),
        ("- red ball\n- blue ball\n\nIn total, 2 balls.", DIGITS, "C"),
        ("In image 1 there are 2 balls.", DIGITS, "C"),
        ("1. **Identify the circle**: it is at the left.\n2. **Identify the square**: it is at the right.\n3. "
         "**Compare**: "
         "the circle is to the left of the square.\n\nTherefore, the answer is **(A) left**.", SIDES, "A"),
        ("A. left: the circle is not there.\nB. right: correct, it is there.", SIDES, "B"),
        ("A. left \u274c\nB. right \u2705\nC. above \u274c\nD. below \u274c", SIDES, "B"),
    ],
    "numbers": [
        ("\u22123", ("3", "-3"), "B"),
        ("The value is \u22123.", ("3", "-3"), "B"),
        ("\u20133", ("3", "-3"), "B"),
        ("\u22121 m", ("1 m", "-1 m"), "B"),
        ("3", ("3", "-3"), "A"),
        ("-3", ("\u22123", "3"), "A"),
        ("three", DIGITS, "B"),
        ("There are three balls.", DIGITS, "B"),
        ("There are three (3) balls.", DIGITS, "B"),
        ("Three.", DIGITS, "B"),
        ("twenty-one", ("20", "21", "1"), "B"),
        ("There are twenty one books.", ("20", "21", "1"), "B"),
        ("2", ("one", "two", "three"), "B"),
        ("There are 2 dogs.", ("one", "two", "three"), "B"),
        ("There are two dogs and one of them is black.", ("one", "two", "three"), "B"),
        ("There is only one dog.", ("one", "two", "three"), "A"),
        ("No one is there.", ("one", "two", "three"), ""),
        ("1,000", ("1000", "100"), "A"),
        ("1000 people", ("1,000", "100"), "A"),
        ("3.0", ("3", "30"), "A"),
        ("3.5", ("3", "5", "3.5"), "C"),
        ("The distance is 1.5 metres.", ("1.5 m", "2 m", "15 m"), "A"),
        ("about 2 meters", ("1.5 m", "2 m", "15 m"), "B"),
        ("The distance is 2.", ("1.5 m", "2 m", "15 m"), "B"),
        ("2 cm", ("1.5 m", "2 m", "15 m"), ""),
        ("2m", ("1.5 m", "2 m", "15 m"), "B"),
        ("2-3 balls", DIGITS, ""),
        ("Between 2 and 3", DIGITS, ""),
        ("There are 2 red balls and 1 blue ball, so there are 3 balls in total.", DIGITS, "B"),
        ("2 + 1 = 3", DIGITS, "B"),
        ("The box is at [3, 40, 200, 310].", DIGITS, ""),
        ("There are no balls.", DIGITS, "A"),
        ("There are zero balls.", DIGITS, "A"),
        ("I see a 3D shape.", DIGITS, ""),
        ("30\u00b0", ("30 degrees", "60 degrees"), "A"),
        ("rotated by 60 degrees", ("30 degrees", "60 degrees"), "B"),
        ("50 percent", ("50%", "25%"), "A"),
        ("3 balls", ("2 balls", "3 balls", "4 balls"), "B"),
        ("The number of balls is 3.", ("2 balls", "3 balls", "4 balls"), "B"),
        ("4:30", ("4:30", "4:00", "30"), "A"),
        ("1/2", ("1", "2", "1/2"), "C"),
    ],
    "boxes and tags": [
        ("\\boxed{B}", SIDES, "B"),
        ("\\boxed{\\text{B}}", SIDES, "B"),
        ("\\boxed{\\text{(B) right}}", SIDES, "B"),
        ("\\boxed{left}", SIDES, "A"),
        ("\\[\n\\boxed{\\text{left}}\n\\]", SIDES, "A"),
        ("The circle is on the right, the square on the left. \\boxed{\\textbf{A}}", SIDES, "A"),
        ("**Final Answer**\n\n\\[ \\boxed{C} \\]", SIDES, "C"),
        ("$\\boxed{3}$", DIGITS, "B"),
        ("\\( \\boxed{3} \\)", DIGITS, "B"),
        ("First \\boxed{A}. Wait, that is wrong. \\boxed{B}", SIDES, "B"),
        ("<think>The circle... maybe left.</think>\n\n<answer>(B)</answer>", SIDES, "B"),
        ("<think>The circle... maybe left. <answer>B</answer>", SIDES, "B"),
        ("<think>\nOkay, let me see. It could be A or B.\n</think>\n\nThe answer is **B**.", SIDES, "B"),
        ("<think>left or right? The answer is left", SIDES, ""),
        ("<SUMMARY>I will look.</SUMMARY><REASONING>left, then "
         "right</REASONING><CONCLUSION>B</CONCLUSION>", SIDES, "B"),
        ("<|begin_of_box|>B<|end_of_box|>", SIDES, "B"),
        ("\u25c1think\u25b7left?\u25c1/think\u25b7B", SIDES, "B"),
        ('{"answer": "B"}', SIDES, "B"),
        ('```json\n{"answer": "right"}\n```', SIDES, "B"),
        ("<b>B</b>", SIDES, "B"),
        ("B</s>", SIDES, "B"),
        ("~~A~~ B", SIDES, "B"),
    ],
    "corrections": [
        ("Answer: A\nAfter checking the picture again, I have to correct this.\nAnswer: B", SIDES, "B"),
        ("The answer is A. Wait, the circle is on the other side. The answer is B.", SIDES, "B"),
        ("No... wait, yes.", YES, "A"),
        ("Answer: B\nAnswer: B", SIDES, "B"),
        ("Yes. Actually, no.", YES, "B"),
        ("A. No wait, B.", SIDES, "B"),
        ("It is left. Actually, it is right.", SIDES, "B"),
        ("The answer is A. Hmm, let me double-check. The circle is on the right. So the answer is B.", SIDES, "B"),
        ("The answer is A. Wait, that is wrong.", SIDES, ""),
        ("The answer is A. I made a mistake.", SIDES, ""),
        ("The answer is B. Let me double-check: the circle is indeed to the right. Yes, B.", SIDES, "B"),
        ("left, sorry, right", SIDES, "B"),
        ("I first thought it was A, but it is B.", SIDES, "B"),
        ("Initially it seems left. On second thought, it is right.", SIDES, "B"),
        ("At first glance the circle seems to be left, but it is right.", SIDES, "B"),
        ("Correction: the answer is D.", SIDES, "D"),
        ("My previous answer A was wrong. The correct answer is C.", SIDES, "C"),
        ("The answer is (A). Hold on, I mixed them up. Final answer: (B)", SIDES, "B"),
        ("Option B. Sorry, I meant option C.", SIDES, "C"),
        ("I would say A. Looking again, I would say B.", SIDES, "B"),
        ("It looks like the answer is A at first. However, the correct answer is B.", SIDES, "B"),
    ],
    "Chinese, Japanese, Korean": [
        ("答案是B", SIDES, "B"),
        ("选B", SIDES, "B"),
        ("选择B", SIDES, "B"),
        ("B.右", SIDES, "B"),
        ("答えはBです", SIDES, "B"),
        ("정답은 B입니다.", SIDES, "B"),
        ("它在左边", ("左边", "右边"), "A"),
        ("在图像的右侧", ("图像的右侧", "图像的左侧"), "A"),
        ("有3个球", ("3", "4"), "A"),
        ("有三个球。", ("3", "4"), "A"),
        ("正确答案：C", SIDES, "C"),
        ("答案：Ｂ", SIDES, "B"),
        ("答案是（B）。", SIDES, "B"),
        ("选项B是正确的。", SIDES, "B"),
        ("所以选C。", SIDES, "C"),
        ("因此，正确答案是D。", SIDES, "D"),
        ("不是A，而是B。", SIDES, "B"),
        ("A是错的，选B。", SIDES, "B"),
        ("红球不在左边，在右边。", ("左边", "右边"), "B"),
        ("在左侧。", ("左边", "右边"), "A"),
        ("以上都不是", ("上", "下"), ""),
        ("不能确定", ("左边", "右边"), ""),
        ("左边或右边", ("左边", "右边"), ""),
        ("是的", ("是", "否"), "A"),
        ("是", ("是", "否"), "A"),
        ("否", ("是", "否"), "B"),
        ("不是。", ("是", "否"), "B"),
        ("左ではなく右です", ("左", "右"), "B"),
        ("正解は「C」です。", SIDES, "C"),
        ("「B」", SIDES, "B"),
        ("選択肢B", SIDES, "B"),
        ("Bが正解です。", SIDES, "B"),
        ("정답: B", SIDES, "B"),
        ("답은 C 입니다", SIDES, "C"),
        ("빨간 원은 왼쪽에 있습니다.", ("왼쪽", "오른쪽"), "A"),
        ("왼쪽이 아니라 오른쪽입니다.", ("왼쪽", "오른쪽"), "B"),
        ("A点更近", SIDES, ""),
        ("Ａ", SIDES, "A"),
        ("Ｂ．right", SIDES, "B"),
        ("答案是A。等等，不对，答案是B。", SIDES, "B"),
    ],
    "other languages": [
        ("Die richtige Antwort ist B.", SIDES, "B"),
        ("Die Antwort lautet (C).", SIDES, "C"),
        ("La bonne réponse est B.", SIDES, "B"),
        ("La respuesta correcta es la B.", SIDES, "B"),
        ("A resposta correta é B.", SIDES, "B"),
        ("La risposta corretta è D.", SIDES, "D"),
        ("Правильный ответ: B", SIDES, "B"),
        ("Réponse : (B)", SIDES, "B"),
        ("links", ("links", "rechts"), "A"),
        ("Nicht links, sondern rechts.", ("links", "rechts"), "B"),
        ("Der rote Kreis ist rechts vom Quadrat.", ("links", "rechts"), "B"),
        ("O círculo está à esquerda.", ("esquerda", "direita"), "A"),
    ],
    "denials": [
        ("It is not red, blue or green; it is yellow.", PAINTS, "D"),
        ("not red, blue or green", PAINTS, ""),
        ("The circle is not red, blue, or green, but yellow.", PAINTS, "D"),
        ("It is neither red, nor blue, nor green.", PAINTS, ""),
        ("A and B are wrong.", SIDES, ""),
        ("A and B are wrong, so C.", SIDES, "C"),
        ("A, B and D are incorrect. C is correct.", SIDES, "C"),
        ("A, B, and D can be ruled out.", SIDES, ""),
        ("A, B, and D can be ruled out, which leaves C.", SIDES, "C"),
        ("Neither A nor B", SIDES, ""),
        ("Rather than left, it is right.", SIDES, "B"),
        ("It is right instead of left.", SIDES, "B"),
        ("Instead of A, I would choose C.", SIDES, "C"),
        ("Unlike A, B is correct.", SIDES, "B"),
        ("Unlike option A, option C fits the picture.", SIDES, "C"),
        ("It isn't left, above or below the square.", SIDES, ""),
        ("Left and right are both wrong, and below is wrong too.", SIDES, ""),
        ("The circle is not on the left or on the right; it is above.", SIDES, "C"),
        ("I rule out A and C. The answer is B.", SIDES, "B"),
        ("Eliminating A, B and D, we get C.", SIDES, "C"),
        ("Incorrect: A, B and C. Correct: D.", SIDES, "D"),
        ("The wrong answers are A, B and C.", SIDES, ""),
        ("It is left as opposed to right.", SIDES, "A"),
        ("B is not wrong.", SIDES, "B"),
        ("The answer is not left.", SIDES, ""),
        ("The answer is neither A nor B.", SIDES, ""),
        ("The answer cannot be A, since the circle is on the right.", SIDES, "B"),
        ("It's not A.\nIt's not B.\nIt's C.", SIDES, "C"),
        ("It is not to the left because it is to the right.", SIDES, "B"),
        ("There is no red, only blue.", PAINTS, "B"),
        ("Not left, but right of the square.", SIDES, "B"),
        ("The circle isn't left of the square. That would be wrong. It is above it.", SIDES, "C"),
        ("It might seem left. That is wrong.", SIDES, ""),
        ("B is wrong and so is C.", SIDES, ""),
        ("A is not the answer; B is.", SIDES, "B"),
        ("A is incorrect because the circle is not left. B is right.", SIDES, "B"),
        ("non-red", PAINTS, ""),
        ("Everything except yellow.", PAINTS, ""),
    ],
    "marks around a letter": [
        ("_B_", SIDES, "B"),
        ('"B"', SIDES, "B"),
        ("'B'", SIDES, "B"),
        ("\u2018B\u2019", SIDES, "B"),
        ("\u00abB\u00bb", SIDES, "B"),
        ("「B」", SIDES, "B"),
        ("【B】", SIDES, "B"),
        ("[B]", SIDES, "B"),
        ("<B>", SIDES, "B"),
        ("{B}", SIDES, "B"),
        ("B)", SIDES, "B"),
        ("**B.**", SIDES, "B"),
        ("***B***", SIDES, "B"),
        ("**B)** right", SIDES, "B"),
        ("__B__", SIDES, "B"),
        ("The answer is _B_.", SIDES, "B"),
        ('The answer is "B".', SIDES, "B"),
        ("The answer is [B].", SIDES, "B"),
        ("The answer is <B>.", SIDES, "B"),
        ("Answer = B", SIDES, "B"),
        ("Answer - B", SIDES, "B"),
        ("Answer\nB", SIDES, "B"),
        ("**Answer**\n\nB. right", SIDES, "B"),
        ("### Answer: B", SIDES, "B"),
        ("> B", SIDES, "B"),
        ("- B", SIDES, "B"),
        ("* (B)", SIDES, "B"),
        ("B,", SIDES, "B"),
        ("B!", SIDES, "B"),
        ("option B is the best choice", SIDES, "B"),
        ("Choice (B)", SIDES, "B"),
        ("The second option.", SIDES, "B"),
        ("I choose the last option.", SIDES, "D"),
        ("Option 2", SIDES, "B"),
        ("The second option.", IMAGES, "B"),
    ],
    "right that is no direction": [
        ("The right answer is left.", SIDES, "A"),
        ("The right answer is A.", SIDES, "A"),
        ("You are right.", SIDES, ""),
        ("You're right, it is left.", SIDES, "A"),
        ("That's right.", SIDES, ""),
        ("It is right above the square.", SIDES, "C"),
        ("The circle is right below the square.", SIDES, "D"),
        ("A is right.", SIDES, "A"),
        ("Option C is right.", SIDES, "C"),
        ("It is on the left, right?", SIDES, "A"),
        ("It is right next to the square, on the left.", SIDES, "A"),
        ("All right, the circle is on the left.", SIDES, "A"),
        ("The right choice would be D.", SIDES, "D"),
        ("Right now I see a circle on the left.", SIDES, "A"),
        ("the circle is to the right", SIDES, "B"),
        ("Right side", SIDES, "B"),
        ("On the right, above the table.", ("left", "right"), "B"),
        ("The only option left is C.", SIDES, "C"),
        ("Nothing is left.", SIDES, ""),
    ],
    "half a sentence": [
        ("To determine where the circle is, I first look at the left", SIDES, ""),
        ("To determine the position of the circle, let's look at the left side of the", SIDES, ""),
        ("First, I look at the left side of the image", SIDES, ""),
        ("Let me examine the left part of the picture. Then I compare it with the", SIDES, ""),
        ("To answer this question, we need to consider whether the circle is left", SIDES, ""),
        ("The image shows a circle on the left side, and the", SIDES, ""),
        ("To count the balls, I start from the left", SIDES, ""),
        ("Looking at the left of the picture,", SIDES, ""),
        ("In order to find out if the answer is A", SIDES, ""),
        ("To the left of the square", SIDES, "A"),
    ],
    "hedges": [
        ("It could be A or B.", SIDES, ""),
        ("probably B", SIDES, "B"),
        ("Probably B.", SIDES, "B"),
        ("I think it's B.", SIDES, "B"),
        ("if it were A the circle would be left, but B", SIDES, "B"),
        ("If it were A, the circle would be on the left, but it is B.", SIDES, "B"),
        ("Maybe left.", SIDES, "A"),
        ("It might be A, but I am going with C.", SIDES, "C"),
        ("Either A or B", SIDES, ""),
        ("It could be left, but it is right.", SIDES, "B"),
        ("A or B, but most likely B.", SIDES, "B"),
        ("I'm not sure, but B.", SIDES, "B"),
        ("I am not sure whether it is left or right.", SIDES, ""),
        ("I am not sure. B", SIDES, "B"),
        ("Is it left or right? It is right.", SIDES, "B"),
        ("It is hard to say, but I would guess left.", SIDES, "A"),
        ("It depends: A or C.", SIDES, ""),
        ("I cannot determine if it is left or right.", SIDES, ""),
        ("Sorry, I can't help with that.", SIDES, ""),
        ("There is no way to tell left from right here.", SIDES, ""),
        ("Most likely (B), possibly (C).", SIDES, "B"),
    ],
    "options like letters, numbers, or each other": [
        ("red car", ("car", "red car", "red"), "B"),
        ("It is a red car.", ("car", "red car", "red"), "B"),
        ("The car.", ("car", "red car"), "A"),
        ("The circle is at the top left.", ("left", "top left", "top"), "B"),
        ("upper left", ("top left", "top right"), "A"),
        ("in the lower right corner", ("top left", "bottom right"), "B"),
        ("It is on the left side.", ("on the left", "on the right"), "A"),
        ("To the right.", ("on the left", "on the right"), "B"),
        ("left", ("to the left of", "to the right of", "above"), "A"),
        ("The red one.", ("the red car", "the blue car"), "A"),
        ("It did not move.", MOVED, "A"),
        ("The answer is: it did not move.", MOVED, "A"),
        ("The car moved left, it did not stand still.", MOVED, "B"),
        ("not visible", ("visible", "not visible"), "B"),
        ("The cat is not visible.", ("visible", "not visible"), "B"),
        ("The cat is visible.", ("visible", "not visible"), "A"),
        ("cannot be determined", ("left", "right", "cannot be determined"), "C"),
        ("It cannot be determined whether left or right.", ("left", "right", "cannot be determined"), "C"),
        ("both A and B", ("a dog", "a cat", "both A and B"), "C"),
        ("Neither", ("a dog", "a cat", "neither"), "C"),
        ("Neither A nor B.", ("a dog", "a cat", "neither"), "C"),
        ("Neither is closer.", ("a dog", "a cat", "neither"), "C"),
        ("in front of", ("in front of", "behind"), "A"),
        ("The dog is behind the car.", ("in front of", "behind"), "B"),
        ("True", ("True", "False"), "A"),
        ("The statement is false.", ("True", "False"), "B"),
        ("False. The circle is on the right.", ("True", "False"), "B"),
        ("yes", YES, "A"),
        ("Yes, there is a dog.", YES, "A"),
        ("No, there isn't.", YES, "B"),
        ("Yes, there is no dog.", YES, "A"),
        ("The answer is no.", YES, "B"),
        ("I do not know.", YES, ""),
        ("I know the answer: yes", YES, "A"),
        ("Yeah", YES, "A"),
        ("Nope.", YES, "B"),
        ("Point A", ("Point A", "Point B"), "A"),
        ("Point B is closer to the camera.", ("Point A", "Point B"), "B"),
        ("B is closer than A", DEPTH, "B"),
        ("Image 2", ("Image 1", "Image 2"), "B"),
        ("the second image", ("Image 1", "Image 2"), ""),
    ],
    "long reasoning": [
        ("The red circle is on the right half of the picture, while the blue square is on the left half. The circle is "
         "also slightly above the square. Therefore, the red circle is to the right of the blue square.", SIDES, "B"),
        ("Let's analyze each option.\n\n(A) left: The circle would have to be left of the square. It is "
         "not.\n(B) right: "
         "The circle lies to the right of the square.\n(C) above: no.\n(D) below: no.\n\nSo the correct answer is (B).",
         SIDES, "B"),
        ("To determine the relative position, I compare the centres. The circle is at x = 120, the square at x = 300. "
         "Since 120 < 300, the circle is to the left.\n\nAnswer: A", SIDES, "A"),
        ("Looking at the image:\n- Point A is on the chair, which is in the foreground.\n- Point B is on the "
         "wall, in the "
         "background.\n\nTherefore, Point A is closer to the camera.\n\n**(A) A is closer**", DEPTH, "A"),
        ("The image shows two points, A and B. Point A is on the table. Point B is on the wall behind it. Hence, A is "
         "closer.", DEPTH, "A"),
        ("B. right\n\nExplanation: the square is on the left, and the circle is on the right of it.", SIDES, "B"),
        ("Okay, so I need to figure out the position. The square is left. Hmm, the circle is right. Wait, let me look "
         "again. Yes, the circle is right.\n</think>\nThe circle is to the right of the square.", SIDES, "B"),
        ("I see a dog to the left of a car, and a cat above the car. The question asks for the cat. Thus the "
         "cat is above "
         "the car.", SIDES, "C"),
        ("Both the circle and the square are visible. The circle is on the left and the square is on the "
         "right.", SIDES, ""),
        ("Question: Where is the circle?\nOptions: (A) left (B) right (C) above (D) below\nAnswer: (C)", SIDES, "C"),
        ("left, right, above, below", SIDES, ""),
        ("Among left, right, above and below, the correct one is below.", SIDES, "D"),
        ("There are 2 chairs in the foreground and 1 in the background. Adding them gives 3 chairs.", DIGITS, ""),
        ("There are 2 chairs in front and 1 chair in the back. In total there are 3 chairs.", DIGITS, "B"),
        ("Yes.\n\nThe car is beneath the cat. No other objects are in between.", YES, "A"),
        ("Based on the image, no, the car is not beneath the cat.", YES, "B"),
        ("The correct answer is (B) because in (A) the circle would be on the left.", SIDES, "B"),
        ("(C)\n\n(A) and (B) are wrong as the circle is over the square.", SIDES, "C"),
        ("I would choose option D: below, as the circle is under the square and not above it.", SIDES, "D"),
        ("The best option is B, although A is close.", SIDES, "B"),
    ],
}


# Further answers of all kinds, written to mislead a judge: answer, options, the letter that a person reads.
FURTHER = [
    ("The correct option is (B) right, because the circle lies on the right-hand side of the square.", SIDES, "B"),
    ("Based on the image provided, the red circle appears to be positioned to the left of the blue square.",
     SIDES, "A"),
    ("The red circle is located above the blue square in the image.", SIDES, "C"),
    ("Answer: (C) above\n\nExplanation: The circle is higher than the square, so it's not below it.", SIDES, "C"),
    ("None of the options is correct.", SIDES, ""),
    ("none of these", SIDES, ""),
    ("All of the options above could be correct.", SIDES, ""),
    ("The answer is not given above.", SIDES, ""),
    ("From the picture above we see that the dog is below the table.", SIDES, "D"),
    ("Neither of the above.", SIDES, ""),
    ("I cannot see any image above.", SIDES, ""),
    ("As I said above, below.", SIDES, "D"),
    ("1. left\n2. right", SIDES, ""),
    ("1. The circle is red.\n2. The square is blue.\n3. The circle is on the left of the square.\nSo the "
     "answer is A.", SIDES, "A"),
    ("2) There are two dogs.", FOUR, "B"),
    ("1. One dog\n2. One cat\nTotal: 2", FOUR, "B"),
    ("I count: 1, 2, 3. So there are 3.", FOUR, "C"),
    ("1, 2, 3", FOUR, ""),
    ("There are 4 legs and 1 head, so it's one animal.", FOUR, "A"),
    ("The number is four.", FOUR, "D"),
    ("FOUR", FOUR, "D"),
    ("There're three chairs around the table.", FOUR, "C"),
    ("(3)", FOUR, "C"),
    ("Option 3", FOUR, "C"),
    ("C", FOUR, "C"),
    ("(C) 3", FOUR, "C"),
    ("C. 4", FOUR, ""),
    ("−2.5", ("2.5", "-2.5"), "B"),
    ("It is minus three.", ("3", "-3"), "B"),
    ("approximately -3 degrees", ("3", "-3"), "B"),
    ("The temperature is –5.", ("5", "-5"), "B"),
    ("1,200", ("1200", "12"), "A"),
    ("a dozen", ("12", "10"), ""),
    ("Final answer: $\\boxed{\\text{above}}$", SIDES, "C"),
    ("The answer is $\\boxed{(B)}$.", SIDES, "B"),
    ("\\boxed{A \\text{ or } B}", SIDES, ""),
    ("\\boxed{\\text{None}}", SIDES, ""),
    ("I choose A... Actually no, B is better.", SIDES, "B"),
    ("A\n\nWait, I think I made an error. The correct answer should be D.", SIDES, "D"),
    ("The answer is left. Let me reconsider. The square is on the left of the circle, so the circle is on "
     "the right. Final answer: right.", SIDES, "B"),
    ("yes, no, yes", YES, ""),
    ("Hmm, no. I mean yes.", YES, "A"),
    ("Not B. A.", SIDES, "A"),
    ("B? No, A.", SIDES, "A"),
    ("Is it B? I think so.", SIDES, ""),
    ("It's not A, B, or C, so it must be D.", SIDES, "D"),
    ("A, B and C are all incorrect.", SIDES, ""),
    ("Neither left nor right; it's above.", SIDES, "C"),
    ("The dog isn't to the left, the right, or above; it's below.", SIDES, "D"),
    ("It is anything but left.", SIDES, ""),
    ("not blue, not green, but red", PAINTS, "A"),
    ("The ball is red, not blue or green.", PAINTS, "A"),
    ("The ball is neither red nor blue. It's green.", PAINTS, "C"),
    ("The ball isn't yellow.", PAINTS, ""),
    ("Instead of red, blue or green, the ball is yellow.", PAINTS, "D"),
    ("Excluding A and C leaves B.", SIDES, "B"),
    ("Options A, C, and D can be eliminated, leaving B as the answer.", SIDES, "B"),
    ("Only B is not wrong.", SIDES, "B"),
    ("A is false, B is false, C is true.", SIDES, "C"),
    ("Left is incorrect. Right is incorrect. Above is correct.", SIDES, "C"),
    ("「A」", SIDES, "A"),
    ("“right”", SIDES, "B"),
    ("'left'", SIDES, "A"),
    ("`B`", SIDES, "B"),
    ("_left_", SIDES, "A"),
    ("(left)", SIDES, "A"),
    ("[[B]]", SIDES, "B"),
    ("<<B>>", SIDES, "B"),
    ("<answer>_B_</answer>", SIDES, "B"),
    ("ANSWER: B", SIDES, "B"),
    ("answer: b.", SIDES, "B"),
    ("Ans. B", SIDES, "B"),
    ("Ans: (B)", SIDES, "B"),
    ("My answer is B.", SIDES, "B"),
    ("I'd go with option (C).", SIDES, "C"),
    ("I'd say left.", SIDES, "A"),
    ("I would say the right one.", LR, "B"),
    ("The right one is closer.", LR, "B"),
    ("The left is right.", LR, ""),
    ("right answer: left", LR, "A"),
    ("You got it right! It's on the left.", LR, "A"),
    ("It's right here on the left.", LR, "A"),
    ("right above", SIDES, "C"),
    ("Right below the shelf.", SIDES, "D"),
    ("The lamp hangs right over the table, i.e. above it.", SIDES, "C"),
    ("To the right of the sofa, right under the window", SIDES, "B"),
    ("It's left, isn't it?", SIDES, "A"),
    ("Sorry, I can't tell left from right here.", LR, ""),
    ("The picture is too dark to decide.", LR, ""),
    ("Unclear", LR, ""),
    ("I don't know", YES, ""),
    ("I don't think so.", YES, ""),
    ("Not really.", YES, ""),
    ("Yes - the cup is on the table.", YES, "A"),
    ("No - the cup is not on the table.", YES, "B"),
    ("Yes, although no one is visible.", YES, "A"),
    ("yes\n", YES, "A"),
    ("The answer to the question is no.", YES, "B"),
    ("The cup is on the table, so yes.", YES, "A"),
    ("The cup is not on the table, so the answer is no.", YES, "B"),
    ("No problem! Yes, it is.", YES, "A"),
    ("There are no people, so no.", YES, "B"),
    ("In the picture, we can see", SIDES, ""),
    ("To answer the question, I will compare left", SIDES, ""),
    ("The question asks about the position of the circle relative to the square. The circle is at the left",
     SIDES, "A"),
    ("We need to find whether the circle is to the left or to the right of", SIDES, ""),
    ("First I check the left, then the right, and then", SIDES, ""),
    ("It could be left.", SIDES, "A"),
    ("It could be left, right or above.", SIDES, ""),
    ("It's either B or C, but I lean towards C.", SIDES, "C"),
    ("Probably A, but B is also possible.", SIDES, "A"),
    ("Likely right", SIDES, "B"),
    ("I guess it's A", SIDES, "A"),
    ("Perhaps the answer is D.", SIDES, "D"),
    ("I'm leaning towards B.", SIDES, "B"),
    ("If we look from the camera, the circle is to the left.", SIDES, "A"),
    ("If A were right, the ball would be red. It is blue, so B.", SIDES, "B"),
    ("Unless I'm mistaken, it is C.", SIDES, "C"),
    ("a cat", ANIMALS, "B"),
    ("It's a cat, not a dog.", ANIMALS, "B"),
    ("A dog", ANIMALS, "A"),
    ("A. a dog", ANIMALS, "A"),
    ("A cat is next to a dog.", ANIMALS, ""),
    ("The animal is a bird", ANIMALS, "D"),
    ("horses", ANIMALS, ""),
    ("The car is in front of the tree.", PLACES, "B"),
    ("behind the tree", PLACES, ""),
    ("B. The car is in front of the tree", PLACES, "B"),
    ("The correct statement is: The car is next to the tree.", PLACES, "C"),
    ("Point C", POINTS, "C"),
    ("C", POINTS, "C"),
    ("The answer is point C.", POINTS, "C"),
    ("Point C corresponds to the REF point.", POINTS, "C"),
    ("B is closer to the camera than A.", DEPTH, "B"),
    ("Point A is farther, so B is closer.", DEPTH, "B"),
    ("Point B appears closer than point A.", DEPTH, ""),
    ("(B)", DEPTH, "B"),
    ("The second image", IMAGES, "B"),
    ("second", IMAGES, ""),
    ("2", IMAGES, ""),
    ("The image on the left", IMAGES, ""),
    ("选项A", SIDES, "A"),
    ("我认为答案是C。", SIDES, "C"),
    ("答案：B. right", SIDES, "B"),
    ("应该选D", SIDES, "D"),
    ("A和B都不对，应选C。", SIDES, "C"),
    ("不是左边，也不是右边，而是上面", ("左边", "右边", "上面", "下面"), "C"),
    ("圆在方块的左边。", ("左边", "右边", "上面", "下面"), "A"),
    ("图中有两只狗", ("1", "2", "3"), "B"),
    ("两只", ("1", "2", "3"), "B"),
    ("共有5个", ("4", "5"), "B"),
    ("最终答案是**B**。", SIDES, "B"),
    ("因此，选择B。", SIDES, "B"),
    ("以上都不对", ("上", "下"), ""),
    ("如上所述，在下面", ("上面", "下面"), "B"),
    ("Bだと思います。", SIDES, "B"),
    ("答えは「右」です。", ("左", "右"), "B"),
    ("赤い円は青い四角の左側にあります。", ("左", "右"), "A"),
    ("Aではなく、Bです。", SIDES, "B"),
    ("はい", ("はい", "いいえ"), "A"),
    ("いいえ、ありません。", ("はい", "いいえ"), "B"),
    ("정답은 A가 아니라 B입니다.", SIDES, "B"),
    ("오른쪽에 있습니다.", ("왼쪽", "오른쪽"), "B"),
    ("아니요, 없습니다.", ("예", "아니요"), "B"),
    ("네", ("예", "아니요"), ""),
    ("세 개 있습니다.", ("2", "3"), "B"),
    ("（Ｂ）", SIDES, "B"),
    ("Ｂ", SIDES, "B"),
    ("ｌｅｆｔ", SIDES, "A"),
    ("B：右边", SIDES, "B"),
    ("对", ("对", "错"), "A"),
    ("错", ("对", "错"), "B"),
    ("La réponse est la B, car le cercle est à droite.", SIDES, "B"),
    ("Sí", ("sí", "no"), "A"),
    ("La pelota no está a la izquierda sino a la derecha.", ("izquierda", "derecha"), "B"),
    ("Rechts.", ("links", "rechts"), "B"),
    ("The chair is to the left of the table and the table is to the right of the chair. Therefore the "
     "chair is to the left of the table.", SIDES, "A"),
    ("We are asked where the cup is. Looking at the scene, the cup sits on the right of the plate; the "
     "fork is on the left. So, relative to the plate, the cup is on the right.", SIDES, "B"),
    ("Let me think step by step.\n1. The red box is near the left edge.\n2. The green box is near the "
     "right edge.\n3. Hence the red box is left of the green box.\n\n**Final Answer: A**", SIDES, "A"),
    ("Thought: left or right?\nAction: compare\nAnswer: right", SIDES, "B"),
    ("Reason: the circle is above the line.\nFinal: C", SIDES, "C"),
    ("Therefore, option B (right) is correct.", SIDES, "B"),
    ("Thus, the correct answer is:\n\n**B. right**", SIDES, "B"),
    ("So the final answer is (B), not (A).", SIDES, "B"),
    ("The answer is B, not A or C.", SIDES, "B"),
    ("The answer is B and not A.", SIDES, "B"),
    ("The correct answer: B) right. Option A) left is wrong.", SIDES, "B"),
    ("A) left - No\nB) right - Yes\nC) above - No\nD) below - No", SIDES, "B"),
    ("A: False\nB: False\nC: True\nD: False", SIDES, "C"),
    ("The object is left of the table. Answer: B", SIDES, "B"),
    ("Given the choices, left (A) is the most accurate.", SIDES, "A"),
    ("Right (B).", SIDES, "B"),
    ("left (B)", SIDES, ""),
    ("The answer is (A) right.", SIDES, ""),
    ("A and B", SIDES, ""),
    ("Both.", SIDES, ""),
    ("Both left and right.", SIDES, ""),
    ("A, since B is not visible", SIDES, "A"),
    ("Not visible.", ("visible", "hidden"), ""),
    ("the circle is on the left side of the image and the square is on the right side", SIDES, ""),
    ("It moved to the left.", ("It moved left", "It moved right"), "A"),
    ("The camera rotated left.", ("rotated left", "rotated right", "did not move"), "A"),
    ("rotated to the right", ("rotated left", "rotated right"), "B"),
    ("I would turn left.", ("turn left", "turn right", "go straight"), "A"),
    ("You need to turn right and go straight.", ("turn left", "turn right", "go straight"), ""),
    ("no", ("no", "yes"), "A"),
    ("(A) no", ("no", "yes"), "A"),
    ("not", YES, ""),
    ("nope, it isn't", YES, "B"),
    ("Absolutely!", YES, ""),
    ("Correct.", YES, ""),
    ("Yes it is", YES, "A"),
    ("Yes and it is red, no doubt.", YES, "A"),
    ("No, yes it is there.", YES, ""),
    ("The answer is B. A common wrong answer is A.", SIDES, "B"),
    ("Some may answer A. But it is B.", SIDES, "B"),
    ("The answer would be A if the camera were on the other side.", SIDES, ""),
    ("You might think the answer is A, but it is B.", SIDES, "B"),
    ("I would have chosen A, but B is better.", SIDES, "B"),
    ("It is not clear whether it is A or B; however, the shadow suggests B.", SIDES, "B"),
    ("Option A: The circle is to the left of the square. This is incorrect.\nOption B: The circle is to "
     "the right of the square. This is correct.", SIDES, "B"),
    ("Option A says the circle is left, which is not the case. Option B is the answer.", SIDES, "B"),
    ("The left circle is bigger than the right circle.", LR, ""),
    ("Point A is farther than point B.", DEPTH, ""),
    ("Which is closer, A or B? A is closer.", DEPTH, "A"),
    ("Answer: A) left B) right", LR, ""),
    ("The car isn't moving.", ("is moving", "is not moving"), "B"),
    ("The car is moving.", ("is moving", "is not moving"), "A"),
    ("There is no dog in the picture.", ("there is a dog", "there is no dog"), "B"),
    ("I see 2 images. There are 3 cats.", FOUR, ""),
    ("3 or 4", FOUR, ""),
    ("3 out of 4", FOUR, ""),
    ("A. left - the circle is on the other side.\nB. right - this matches the image.", SIDES, "B"),
    ("选项B更合适。", SIDES, "B"),
    ("正确答案不是A，是B。", SIDES, "B"),
    ("可能是A或B", SIDES, ""),
    ("B가 아닙니다.", SIDES, ""),
    ("B is what I choose.", SIDES, "B"),
    ("I'm between A and B.", SIDES, ""),
    ("Between A and B, I choose B.", SIDES, "B"),
    ("I pick B over A.", SIDES, "B"),
    ("As for B, it is wrong.", SIDES, ""),
    ("Yes", ("Yes, the car is moving", "No, the car is still"), "A"),
    ("No.", ("Yes, the car is moving", "No, the car is still"), "B"),
    ("Yes, the car moves", ("Yes, the car is moving", "No, the car is still"), "A"),
    ("on the lefthand side", LR, "A"),
    ("upper-left corner", ("top left", "top right", "bottom left", "bottom right"), "A"),
    ("The answer is", SIDES, ""),
    ("The correct answer is (", SIDES, ""),
    ("Answer:", SIDES, ""),
    ("The answer is B because the", SIDES, "B"),
    ("I'm sorry, but I can't assist with that.", SIDES, ""),
    ("The image does not provide enough information to determine whether the circle is left or right.", SIDES, ""),
    ("Unable to determine left or right.", SIDES, ""),
    ("It's impossible to say if it's A or B.", SIDES, ""),
    ("approximately 1.5 meters (5 feet)", ("1.5 m", "5 m"), "A"),
    ("Output: {'answer': 'B', 'reason': 'the circle is on the right'}", SIDES, "B"),
    ("The answer isn't A; rather, it's B.", SIDES, "B"),
    ("Hence the answer: B", SIDES, "B"),
    ("The best answer is thus B.", SIDES, "B"),
    ("B seems correct.", SIDES, "B"),
    ("I can rule out A because the circle isn't on the left, and C and D because they're at the same height.",
     SIDES, ""),
    ("A is wrong because B is behind it.", SIDES, ""),
    ("left is wrong, right is wrong, above is wrong", SIDES, ""),
    ("The circle isn't above. It isn't below. It isn't left. So it must be right.", SIDES, "B"),
    ("Not above, not below and not left: right.", SIDES, "B"),
    ("It is definitely not A or C. Between B and D, D fits better.", SIDES, ""),
    ("Option (A) can be excluded, and so can (B). Hence (C).", SIDES, "C"),
    ("The picture shows a left turn sign. The arrow points to the right.", LR, ""),
    ("The answer is right there on the left.", LR, "A"),
    ("That is the right answer: above.", SIDES, "C"),
    ("It's in the right place, above the shelf.", SIDES, ""),
    ("What's left is option C.", SIDES, "C"),
    ("There are two cats left of the tree.", FOUR, "B"),
    ("What remains is B", SIDES, "B"),
    ("I have ruled out everything but C.", SIDES, "C"),
    ("The other options are wrong. B.", SIDES, "B"),
    ("(A), (B) and (C) do not match the image. (D) does.", SIDES, "D"),
    ("None of A, B, C, or D.", SIDES, ""),
    ("No option fits.", SIDES, ""),
    ("No.", SIDES, ""),
    ("Yes.", SIDES, ""),
    ("It is A. No, B. No, wait, C.", SIDES, "C"),
    ("Left\n\nCorrection: Right", LR, "B"),
    ("Answer: B\n\nActually, upon closer inspection, the answer is C.", SIDES, "C"),
    ("Answer: B. Upon closer inspection this is right.", SIDES, "B"),
    ("B... or maybe C? No, B.", SIDES, "B"),
    ("I was going to say A, but B is correct.", SIDES, "B"),
    ("I'd say B, maybe C.", SIDES, "B"),
    ("B (80% sure)", SIDES, "B"),
    ("B, though I'm not certain.", SIDES, "B"),
    ("I'm not certain, but I believe the answer is B, not C.", SIDES, "B"),
    ("I can't be sure, but B.", SIDES, "B"),
    ("Can't be A. Must be B.", SIDES, "B"),
    ("It can't be anything other than B.", SIDES, "B"),
    ("No doubt, B.", SIDES, "B"),
    ("Without a doubt, left.", SIDES, "A"),
    ("nothing but red", PAINTS, "A"),
    ("The color is not red but blue.", PAINTS, "B"),
    ("It's red-ish? No, it's blue.", PAINTS, "B"),
    ("The colour looks more green than blue.", PAINTS, ""),
    ("It's a red square on a blue background.", PAINTS, ""),
    ("The square is red; the background isn't green.", PAINTS, "A"),
    ("The answer is A. The answer is B.", SIDES, ""),
    ("Answer: A\nAnswer: B", SIDES, ""),
    ("A\nB", SIDES, ""),
    ("left\nright", SIDES, ""),
    ("B\n\nB", SIDES, "B"),
    ("B B B B", SIDES, "B"),
    ("<answer></answer>", SIDES, ""),
    ("<answer>The circle is on the left, so A</answer>", SIDES, "A"),
    ("<think>A</think>", SIDES, ""),
    ("Reasoning: A is left. B is right. C is up.\nFinal: B", SIDES, "B"),
    ("**Reasoning**\nThe circle is left of the square.\n\n**Answer**\nA", SIDES, "A"),
    ("## Analysis\nPoint A is on the wall; point B is on the table.\n## Conclusion\nB is closer.", DEPTH, "B"),
    ("Conclusion: the circle is on the right.", LR, "B"),
    ("In conclusion, the circle is on the right of the square, not on the left.", LR, "B"),
    ("So, in summary: right.", LR, "B"),
    ("Thus right, since left is where the square is.", LR, "B"),
    ("Since the square is on the left, the circle is on the right.", LR, "B"),
    ("Because A is further away, B is closer.", DEPTH, "B"),
    ("The circle's left side touches the square, so the circle is to the right.", LR, "B"),
    ("The dog is looking left. The ball is behind it. Answer: (A)", SIDES, "A"),
    ("the correct choice should be \"C\"", SIDES, "C"),
    ("Correct answer → B", SIDES, "B"),
    ("=> B", SIDES, "B"),
    ("→ right", LR, "B"),
    ("Ⓑ", SIDES, "B"),
    ("B：右，不是左", ("左", "右"), "B"),
    ("不是左，是右。", ("左", "右"), "B"),
    ("既不是左边也不是右边", ("左边", "右边"), ""),
    ("左邊", ("左邊", "右邊"), "A"),
    ("应该是右边，因为左边是方块。", ("左边", "右边"), "B"),
    ("在左上角", ("左上", "右上", "左下", "右下"), "A"),
    ("二", ("1", "2", "3"), "B"),
    ("三", ("1", "2", "3"), "C"),
    ("有十二个", ("2", "10", "12"), "C"),
    ("正解はAですが、Bも可能です。", SIDES, "A"),
    ("Aは違います。Bです。", SIDES, "B"),
    ("右ではありません。", ("左", "右"), ""),
    ("左ですか？いいえ、右です。", ("左", "右"), "B"),
    ("답: 왼쪽", ("왼쪽", "오른쪽"), "A"),
    ("B번이 정답입니다.", SIDES, "B"),
    ("A도 아니고 B도 아닙니다.", SIDES, ""),
    ("Die Antwort ist nicht A, sondern B.", SIDES, "B"),
    ("Ce n'est pas A, c'est B.", SIDES, "B"),
    ("No es A, sino B.", SIDES, "B"),
    ("Ответ: слева", ("слева", "справа"), "A"),
    ("Не слева, а справа.", ("слева", "справа"), "B"),
    ("Option B.\nThe reason is that in option A the dog is on the wrong side.", SIDES, "B"),
    ("Between the two points, Point B (on the table) is nearer. So (B).", DEPTH, "B"),
    ("it moved right", ("It did not move", "It moved left", "It moved right"), "C"),
    ("It didn't move.", ("It did not move", "It moved left", "It moved right"), "A"),
    ("Neither image.", IMAGES, ""),
    ("The first image, not the second image.", IMAGES, "A"),
    ("First, I compare both images. The second image is brighter.", IMAGES, "B"),
    ("10", ("1", "10", "100"), "B"),
    ("10.0 m", ("1 m", "10 m", "100 m"), "B"),
    ("1e3", ("1000", "1"), ""),
    ("5'10\"", ("5", "10"), ""),
    ("room 3", FOUR, ""),
    ("He is number 3 in the line", FOUR, ""),
    ("x = 3", FOUR, "C"),
    ("3 = x", FOUR, ""),
    ("3/4", FOUR, ""),
    ("3 x 4", FOUR, ""),
    ("It has 4 sides.", FOUR, "D"),
    ("four-legged", FOUR, ""),
    ("no one", FOUR, ""),
    ("The 2nd one", FOUR, ""),
    ("One.", FOUR, "A"),
    ("only one", FOUR, "A"),
    ("There's one", FOUR, "A"),
    ("one or two", FOUR, ""),
    ("I count one red and one blue ball, two in total.", FOUR, "B"),
    ("I count one red ball and two blue balls, which makes three.", FOUR, "C"),
    ("two plus one equals three", FOUR, "C"),
    ("There are 3 (three) people.", FOUR, "C"),
    ("There are 3, not 4.", FOUR, "C"),
    ("more than 3", FOUR, ""),
    ("at least 3", FOUR, ""),
    ("less than 4", FOUR, ""),
]  # fmt: skip
ALL_CHOICES = [*CHOICES, *(row for rows in WRITTEN.values() for row in rows), *FURTHER]


@pytest.mark.parametrize(("answer", "options", "letter"), ALL_CHOICES)
def test_choice(answer, options, letter):
    for gold in "ABCD"[: len(options)]:
        verdict = JUDGES["choice"](answer, gold, options)
        assert verdict == Verdict(letter == gold, letter != "", letter)


@pytest.mark.parametrize("before", ["", "Looking at the picture, I can see several things.\n\n", "Sure! "])
@pytest.mark.parametrize("behind", [" I hope this helps!", "\n\nThe background is a wall.", "<|im_end|>"])
def test_text_around_an_answer_names_no_other_option(before, behind):
    """A polite frame may make an answer unreadable, and never another option."""
    lost = 0
    for answer, options, letter in ALL_CHOICES:
        verdict = JUDGES["choice"](before + answer.rstrip() + "." * answer[-1:].isalnum() + behind, "A", options)
        assert verdict.value in (letter, "") or not letter, answer
        lost += verdict.value != letter
    assert lost <= 0.04 * len(ALL_CHOICES)


@pytest.mark.parametrize("options", [SIDES, YES, DEPTH, CORNERS, MOVED, IMAGES, COUNTS], ids=lambda options: options[0])
def test_every_option_in_every_form(options):
    """Each option is found in all usual forms, and none of two that are offered together."""
    named = list(zip("ABCD", options, strict=False))
    for letter, text in named:
        forms = [f"({letter})", letter, f"{letter}. {text}", f"({letter}) {text}\n\nSince it is so.", text]
        forms += [text.upper(), f"The answer is ({letter}) {text}.", f"Answer: {text}", f"<answer>{text}</answer>"]
        for answer in (*forms, f"**{letter}: {text}**"):
            assert JUDGES["choice"](answer, letter, options) == Verdict(True, True, letter), answer
        for other, another in named:
            if other != letter:
                for answer in (f"{letter} or {other}", f"Answer: {text} or {another}", f"({letter}) / ({other})"):
                    assert not JUDGES["choice"](answer, letter, options).parsed, answer


def test_choice_of_many_options():
    options = tuple(f"shape {number}" for number in range(26))
    assert JUDGES["choice"]("(Z)", "Z", options) == Verdict(True, True, "Z")
    assert JUDGES["choice"]("I", "I", options).correct
    assert not JUDGES["choice"]("I think so", "I", options).parsed
    assert JUDGES["choice"]("shape 2", "C", options).correct  # not shape 20


# answer, gold, options, whether the published rule takes it
STRINGS = [
    ("left", "left", (), True),
    ("Left.", "left", (), True),
    ("to the left of it", "left", (), True),
    ("right", "left", (), False),
    ("", "left", (), False),
    ("not left", "left", (), True),
    ("cannot", "no", (), True),
    ("nothing", "no", (), True),
    ("leftover", "left", (), True),
    ("le ft", "left", (), True),
    ("top-left", "top left", (), True),
    ("TOP LEFT", "top left", (), True),
    ("left top", "top left", (), False),
    ("a red circle", "a red circle", (), True),
    ("red circle", "a red circle", (), False),
    ("**left**", "left", (), True),
    ("l.e.f.t", "left", (), True),
    ("yes, it is", "yes", (), True),
    ("yesterday", "yes", (), True),
    ("no", "yes", (), False),
    ("13", "3", (), True),
    ("3.5", "35", (), True),
    ("-3", "3", (), True),
    ("three", "3", (), False),
    ("<answer>left</answer>", "left", (), True),
    ("le\nft", "left", (), False),
    ("le\tft", "left", (), False),
    ("l\u00e9ft", "left", (), False),
    ("B", "B", SIDES, False),
    ("(B)", "B", SIDES, False),
    ("right", "B", SIDES, True),
    ("B. right", "B", SIDES, True),
    ("bright", "B", SIDES, True),
    ("left or right", "B", SIDES, True),
    ("left or right", "A", SIDES, True),
    ("it did not move", "A", MOVED, True),
    ("It moved left", "A", MOVED, False),
    ("the first image", "A", IMAGES, True),
    ("first image", "A", IMAGES, False),
    ("The answer is no.", "B", YES, True),
    ("I do not know", "B", YES, True),
    ("(A)", "A", LABELS, True),
    ("an apple", "A", LABELS, True),
]


@pytest.mark.parametrize(("answer", "gold", "options", "right"), STRINGS)
def test_string_match(answer, gold, options, right):
    verdict = JUDGES["string_match"](answer, gold, options)
    assert verdict.correct is right and verdict.parsed is bool(answer)


def test_string_match_is_the_published_rule():
    """Against its own definition, written out: these characters go, then the gold is looked for."""
    gone = ".?!,;:'\"()[]{}<>/\\|=+-_*&^%$#@`~ "
    for answer, gold, options, right in STRINGS:
        wanted = options["ABCD".index(gold)] if options else gold
        said, wanted = ("".join(c for c in text.strip() if c not in gone).lower() for text in (answer, wanted))
        assert (said == wanted or wanted in said) is right


# answer, gold, options, whether the whole answer is the gold
EXACT = [
    ("left", "left", (), True),
    ("Left", "left", (), True),
    (" left \n", "left", (), True),
    ("left.", "left", (), True),
    ("**left**", "left", (), True),
    ('"left"', "left", (), True),
    ("left", "Left.", (), True),
    ("to the left", "left", (), False),
    ("not left", "left", (), False),
    ("left left", "left", (), False),
    ("leftover", "left", (), False),
    ("le ft", "left", (), False),
    ("right", "left", (), False),
    ("", "left", (), False),
    ("top  left", "top left", (), True),
    ("top-left", "top left", (), True),
    ("top, left", "top left", (), True),
    ("topleft", "top left", (), False),
    ("left top", "top left", (), False),
    ("yes", "yes", (), True),
    ("Yes!", "yes", (), True),
    ("yes yes", "yes", (), False),
    ("cannot", "no", (), False),
    ("no", "no", (), True),
    ("a red circle .", "a red circle", (), True),
    ("red circle", "a red circle", (), False),
    ("3", "3", (), True),
    ("13", "3", (), False),
    ("-3", "3", (), False),
    ("3.5", "3.5", (), True),
    ("3.5", "35", (), False),
    ("it's", "it\u2019s", (), True),
    ("\uff4c\uff45\uff46\uff54", "left", (), True),
    ("STRASSE", "stra\u00dfe", (), True),
    ("<answer>left</answer>", "left", (), True),
    ("<think>right</think>left", "left", (), True),
    ("B", "B", SIDES, True),
    ("(b)", "B", SIDES, True),
    ("right", "B", SIDES, True),
    ("B. right", "B", SIDES, True),
    ("B. left", "B", SIDES, False),
    ("A", "B", SIDES, False),
    ("left", "B", SIDES, False),
    ("Answer: B", "B", SIDES, False),
]


@pytest.mark.parametrize(("answer", "gold", "options", "right"), EXACT)
def test_exact(answer, gold, options, right):
    verdict = JUDGES["exact"](answer, gold, options)
    assert verdict.correct is right and verdict.parsed is bool(answer)
    if right and not options:
        assert JUDGES["choice"](answer, gold, options).correct


# answer, gold of an open question, right, parsed
OPEN = [
    ("Yes, there is a dog on the sofa.", "yes", True, True),
    ("No, there isn't.", "no", True, True),
    ("No, there isn't.", "yes", False, True),
    ("The answer is yes.", "yes", True, True),
    ("Yes", "no", False, True),
    ("No... wait, yes.", "yes", True, True),
    ("I do not know.", "no", False, False),
    ("I cannot tell.", "no", False, False),
    ("There is no dog.", "yes", False, False),
    ("There is a dog.", "yes", False, False),
    ("Yes and no.", "yes", False, False),
    ("Yeah", "yes", True, True),
    ("true", "True", True, True),
    ("The statement is false.", "True", False, True),
    ("\u662f\u7684\u3002", "\u662f", True, True),
    ("The red circle is to the left of the blue square.", "left", True, True),
    ("The red circle is to the right of the blue square.", "left", False, True),
    ("The red circle is not to the left of the blue square.", "left", False, False),
    ("to the left", "left", True, True),
    ("left", "to the left", True, True),
    ("not left", "left", False, False),
    ("left or right", "left", False, False),
    ("It is left of the square and right of the cross.", "left", False, False),
    ("The right answer is left.", "left", True, True),
    ("To find the circle, I first look at the left", "left", False, False),
    ("The cat is under the table.", "below", True, True),
    ("The cat is behind the table.", "in front of", False, True),
    ("upper left", "top left", True, True),
    ("The circle is near the square.", "left", False, False),
    ("top-left", "left", False, True),
    ("There are three.", "3", True, True),
    ("There are 3 balls.", "3", True, True),
    ("There are 4 balls.", "3", False, True),
    ("There are 3 red and 2 blue balls.", "3", False, False),
    ("1. I see a table.\n2. I count the balls.\n\nThere are 3 balls.", "3", True, True),
    ("three", "3", True, True),
    ("3", "three", True, True),
    ("twenty-one", "21", True, True),
    ("There are no balls.", "0", True, True),
    ("3 balls", "3 balls", True, True),
    ("3", "3 balls", True, True),
    ("\u22123", "3", False, True),
    ("\u22123", "-3", True, True),
    ("-3", "\u22123", True, True),
    ("about 1.5 metres", "1.5 m", True, True),
    ("about 2 metres", "1.5 m", False, True),
    ("1,000", "1000", True, True),
    ("$\\boxed{3}$", "3", True, True),
    ("So the answer is \\boxed{\\text{left}}", "left", True, True),
    ("2 + 1 = 3, so \\boxed{3}", "3", True, True),
    ("\\boxed{4}", "3", False, True),
    ("The circle is red.", "red", True, True),
    ("The circle is blue.", "red", False, True),
    ("The circle is red and the square is blue.", "red", False, False),
    ("grey", "gray", True, True),
    ("A dog.", "dog", True, True),
    ("It is a dog.", "dog", True, True),
    ("The answer is: a dog", "a dog", True, True),
    ("A cat.", "dog", False, True),
    ("a cyan rectangle", "a red square", False, True),
    ("A cat sits next to the dog.", "dog", False, False),
    ("The picture shows a man who rides a horse.", "dog", False, False),
    ("I do not see a dog.", "dog", False, False),
    ("", "left", False, False),
    ("<think>left</think>", "left", False, False),
    ("<answer>left</answer><answer>right</answer>", "left", False, False),
    ("Not on the left, on the right.", "right", True, True),
    ("在左边", "左边", True, True),
    ("to the left of the square", "left of the square", True, True),
    ("You are right, it's on the left.", "left", True, True),
    ("The circle is higher than the square.", "above", False, False),
    ("Definitely not.", "no", False, False),
    ("It is not clear.", "no", False, False),
    ("no, the dog is left of it", "no", True, True),
    ("There are five people, two of them children.", "5", False, False),
    ("fifteen", "5", False, True),
    ("five or six", "5", False, False),
    ("no people", "0", False, False),
    ("5", "5 m", True, True),
    ("The car is red and white.", "red", False, False),
    ("not red", "red", False, False),
    ("The animal in the picture is a dog.", "dog", False, False),
    ("hot dog", "dog", False, False),
    ("\\boxed{-3}", "3", False, True),
    ("It is in the upper left corner.", "top left", True, True),
    ("top right", "top left", False, True),
]


@pytest.mark.parametrize(("answer", "gold", "right", "parsed"), OPEN)
def test_open_answers(answer, gold, right, parsed):
    verdict = JUDGES["choice"](answer, gold, ())
    assert verdict[:2] == (right, parsed) and bool(verdict.value) is parsed


def test_value_of_a_box():
    boxes = (("$\\boxed{3}$", "3"), ("\\boxed{left}", "left"), ("\\[\n\\boxed{\\text{left}}\n\\]", "left"))
    for answer, value in boxes:
        assert JUDGES["exact"](answer, value, ()) == JUDGES["choice"](answer, value, ()) == Verdict(True, True, value)
    assert JUDGES["exact"]("\\boxed{B}", "B", ("left", "right")) == Verdict(True, True, "b")


# answer, options, what VLMEvalKit's rule infers, by hand ("" where it would ask a language model)
KIT = [
    ("B", SIDES, "B"),
    ("(B) right", SIDES, "B"),
    ("The answer is B.", SIDES, "B"),
    ("b", SIDES, ""),  # no capital
    ("The answer is not B", SIDES, "B"),  # denials are not read
    ("B is the answer to it", SIDES, ""),  # six words, the letter first
    ("B is the answer", SIDES, "B"),  # four words
    ("A or B", SIDES, ""),
    ("So B: in the picture B fits", SIDES, ""),  # the first B is not among the last four words
    ("the circle is left", SIDES, "A"),
    ("not left", SIDES, "A"),
    ("left or right", SIDES, ""),
    ("A circle is far to the right of the blue square", ("to the right of it", "to the left of it"), ""),
    ("A cat", ("dog", "cat"), "A"),  # the article is taken for the option
    ("the red circle is left of the blue square by far", SIDES, ""),  # longer than twice 5 + 4 + 5 + 5 characters
    ("Cannot determine the answer", SIDES, "Z"),
    ("Z", SIDES, "Z"),
    ("Failed to obtain answer via API. B", SIDES, ""),
    ("**B**", SIDES, "B"),
    ('"B"', SIDES, ""),  # quotes stay
    ("", SIDES, ""),
]


@pytest.mark.parametrize(("answer", "options", "value"), KIT)
def test_vlmevalkit(answer, options, value):
    for gold in "ABCD"[: len(options)]:
        assert JUDGES["vlmevalkit"](answer, gold, options) == Verdict(value == gold, value != "", value)


def test_vlmevalkit_of_open_questions():
    judge = JUDGES["vlmevalkit"]
    assert judge("Yes, it is.", "yes", ()) == Verdict(True, True, "yes")
    assert judge("There is no dog.", "yes", ()) == Verdict(False, True, "no")
    assert judge("yes or no", "yes", ()) == Verdict(False, False, "")
    assert judge("a dog", "a dog", ()) == JUDGES["exact"]("a dog", "a dog", ())
    many = tuple(f"shape {letter}" for letter in "abcdefghijklmnopqrstuvwxyz")
    assert not judge("I can't process this file.", "Z", many).correct and judge("Z", "Z", many).correct


REPEATED = [
    "(", "not left, ", "A, ", "the answer is ", "<think>", "\\boxed{", "1. left\n", "wait ", "A or B? ", "a", "- ",
    "左", "3,", "<a>", "if A then B, ", "left is not ", "~~", "\n", "left of it, ", "so left. ", "(A) left (B) right ",
]  # fmt: skip


@pytest.mark.parametrize("part", REPEATED)
def test_work_is_linear(part):
    """Twice the answer runs at most 2.4 times the lines of the judge, 200 aside."""
    one, two = (lines_run(part * (size // len(part))) for size in (1500, 3000))
    assert two < 2.4 * one + 200


def lines_run(answer):
    """Lines of the package `analysis` that the verdict on an answer runs."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        count += event == "line"
        return trace if "analysis" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        JUDGES["choice"](answer, "A", SIDES)
        JUDGES["choice"](answer, "left", ())
    finally:
        sys.settrace(before)
    return count


def test_long_answers_end():
    """A regular expression that backtracks runs no lines: answers of 100,000 characters end within two minutes."""
    code = (
        "import sys\nfrom analysis.judges import JUDGES\n"
        "for part in ('(', '<think>', '<a ', '~', '\\n', '- ', '\\\\boxed{', '\\\\frac{', '1,', '</think>'):\n"
        "    for tail in ('', 'A'):\n"
        "        JUDGES['choice'](part * (100_000 // len(part)) + tail, 'A', ('left', 'right'))\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_enough_answers():
    written = [row for rows in WRITTEN.values() for row in rows]
    assert len(written) >= 150 and min(len(rows) for rows in WRITTEN.values()) >= 10
    assert min(len(CHOICES), len(STRINGS), len(EXACT)) >= 40
    assert min(Counter(bool(letter) for _, _, letter in CHOICES).values()) >= 20


def test_the_judges_differ_where_they_should():
    assert (
        JUDGES["string_match"]("not left", "left", ()).correct and not JUDGES["exact"]("not left", "left", ()).correct
    )
    assert JUDGES["string_match"]("left or right", "A", SIDES).correct
    assert not JUDGES["choice"]("left or right", "A", SIDES).parsed


def row(task="a", correct=True, parsed=True, failed=None, **more):
    return {"task": task, "correct": correct, "parsed": parsed, "failed": failed, **more}


def test_summary():
    rows = [row(), row(), row(correct=False), row(correct=False, parsed=False), row("b", False, False, "image missing")]
    found = summarise(rows)
    wilson = rate_interval([True, True, False, False])
    assert found["overall"] == {
        "accuracy": 0.5, "low": wilson["low"], "high": wilson["high"], "correct": 2, "n": 4, "unparsed": 1, "failed": 1,
    }  # fmt: skip
    assert found["tasks"]["a"] == {**found["overall"], "failed": 0}
    assert found["tasks"]["b"] == {
        "accuracy": None, "low": None, "high": None, "correct": 0, "n": 0, "unparsed": 0, "failed": 1,
    }  # fmt: skip
    assert list(summarise([row("z"), row("c"), row("z")])["tasks"]) == ["c", "z"]
    assert summarise([])["overall"]["n"] == 0


def test_circular_is_right_only_if_every_rotation_is():
    right, wrong, unread = row(id="q", value="A"), row(correct=False), row(correct=False, parsed=False)
    assert circular([right, row()]) == right
    assert circular([right, wrong])["correct"] is False and circular([right, wrong])["parsed"] is True
    assert circular([right, unread])["parsed"] is False
    assert circular([right, row(failed="image missing")])["failed"] == "image missing"
    assert circular([right, row()])["failed"] is None
    with pytest.raises(ValueError, match="no rows"):
        circular([])
